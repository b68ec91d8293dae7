# The CMake package ASC of CANN 9, simulated; see ../README.md.
if(NOT DEFINED ENV{ASCEND_HOME_PATH} OR NOT EXISTS "$ENV{ASCEND_HOME_PATH}")
  message(FATAL_ERROR "ASCEND_HOME_PATH is not set to a toolkit")
endif()
set(toolkit_modules $ENV{ASCEND_HOME_PATH}/compiler/tikcpp/ascendc_kernel_cmake/asc_modules)
list(APPEND CMAKE_MODULE_PATH ${toolkit_modules})
include(${toolkit_modules}/FindASC.cmake)
