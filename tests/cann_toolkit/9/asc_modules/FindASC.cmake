function(ascendc_library target type)
  if(NOT type MATCHES "^(SHARED|STATIC)$")
    message(FATAL_ERROR "ascendc_library: ${type} is not supported")
  endif()
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE ASC)
  add_library(${target} ${type} ${ARGN})
  target_include_directories(${target} INTERFACE ${ASCEND_CANN_PACKAGE_LINUX_PATH}/include)
  target_link_directories(${target} INTERFACE ${ASCEND_CANN_PACKAGE_PATH}/lib64)
  target_link_libraries(${target} INTERFACE ascendc_runtime ascendcl runtime register error_manager
    profapi ge_common_base unified_dlog mmpa dl ascend_dump c_sec)
endfunction()

function(ascendc_compile_definitions target scope)
  target_compile_definitions(${target} ${scope} ${ARGN})
endfunction()

function(ascendc_include_directories target scope)
  target_include_directories(${target} ${scope} ${ARGN})
endfunction()
