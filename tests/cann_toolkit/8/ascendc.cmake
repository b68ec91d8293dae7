# ascendc.cmake of CANN 8, simulated; see ../README.md.
include(ExternalProject)

if(NOT EXISTS "${ASCEND_CANN_PACKAGE_PATH}")
  message(FATAL_ERROR "ASCEND_CANN_PACKAGE_PATH does not exist")
endif()
string(TOLOWER "${SOC_VERSION}" toolkit_soc)
if(NOT toolkit_soc MATCHES "^ascend(910b[1-4]c?(-1)?|910_93[679][12])$" OR NOT RUN_MODE STREQUAL npu)
  message(FATAL_ERROR "SOC_VERSION ${SOC_VERSION}, RUN_MODE ${RUN_MODE}: not supported")
endif()
if(NOT ASCEND_KERNEL_LAUNCH_ONLY)
  message(FATAL_ERROR "only simulated for ASCEND_KERNEL_LAUNCH_ONLY")
endif()
set(ASCEND_PYTHON_EXECUTABLE python3 CACHE STRING "python")
set(ASCENDC_KERNEL_CMAKE_DIR ${CMAKE_CURRENT_LIST_DIR})
set(CMAKE_SKIP_RPATH TRUE)

add_library(host_intf_pub INTERFACE)
target_compile_options(host_intf_pub INTERFACE -fPIC -O2 -std=c++17)
target_compile_definitions(host_intf_pub INTERFACE _GLIBCXX_USE_CXX11_ABI=0)
target_include_directories(host_intf_pub INTERFACE ${ASCEND_CANN_PACKAGE_PATH}/include)

function(ascendc_library target type)
  set(generated ${CMAKE_BINARY_DIR}/auto_gen/${target})
  set(headers ${CMAKE_BINARY_DIR}/include/${target})
  set(sources)
  foreach(source ${ARGN})
    get_filename_component(source ${source} ABSOLUTE)
    list(APPEND sources ${source})
  endforeach()
  list(JOIN sources "::" sources)

  # holds what ascendc_include_directories and ascendc_compile_definitions are told, later
  add_library(${target}_interface INTERFACE)
  ExternalProject_Add(${target}_device
    SOURCE_DIR ${ASCENDC_KERNEL_CMAKE_DIR}/device_project
    CONFIGURE_COMMAND ${CMAKE_COMMAND} -G ${CMAKE_GENERATOR}
      -DSOURCES=${sources}
      -DDEFINITIONS=$<TARGET_PROPERTY:${target}_interface,DEFINITIONS>
      -DINCLUDES=$<TARGET_PROPERTY:${target}_interface,INCLUDES>
      -DDST_DIR=${generated} -DINCLUDE_DIR=${headers}
      -DASCEND_CANN_PACKAGE_PATH=${ASCEND_CANN_PACKAGE_PATH}
      -DASCEND_PYTHON_EXECUTABLE=${ASCEND_PYTHON_EXECUTABLE}
      <SOURCE_DIR>
    INSTALL_COMMAND ""
    LIST_SEPARATOR ::
    BUILD_ALWAYS TRUE)

  # written by that project while building: no rule here makes them
  set_source_files_properties(${generated}/host_stub.cpp PROPERTIES GENERATED TRUE)
  set_source_files_properties(${generated}/device.o PROPERTIES GENERATED TRUE EXTERNAL_OBJECT TRUE)
  add_library(${target}_host_stub_obj OBJECT ${generated}/host_stub.cpp)
  target_link_libraries(${target}_host_stub_obj PRIVATE host_intf_pub)
  target_include_directories(${target}_host_stub_obj PRIVATE
    ${ASCEND_CANN_PACKAGE_PATH}/compiler/tikcpp/runtime)
  add_dependencies(${target}_host_stub_obj ${target}_device)

  add_library(${target} ${type} $<TARGET_OBJECTS:${target}_host_stub_obj> ${generated}/device.o)
  add_dependencies(${target} ${target}_device)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX
    ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
  target_include_directories(${target} INTERFACE ${headers} ${ASCEND_CANN_PACKAGE_PATH}/include)
  target_link_directories(${target} PUBLIC ${ASCEND_CANN_PACKAGE_PATH}/lib64)
  target_link_libraries(${target} PRIVATE host_intf_pub
    INTERFACE ascendc_runtime ascendcl runtime tiling_api register platform error_manager profapi
              ge_common_base ascendalog mmpa dl
    PUBLIC ascend_dump c_sec)
endfunction()

function(ascendc_compile_definitions target scope)
  set_property(TARGET ${target}_interface APPEND PROPERTY DEFINITIONS ${ARGN})
endfunction()

function(ascendc_include_directories target scope)
  set_property(TARGET ${target}_interface APPEND PROPERTY INCLUDES ${ARGN})
endfunction()
