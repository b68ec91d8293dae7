# The npu target, pyrerank._C_npu: kernels by CANN's compiler, host sources by the ordinary one.
# setup.py has found the toolkit, its version and the chip.
#
# The version decides how the kernels are compiled and launched:
#   8.x  ascendc_library of the toolkit's ascendc.cmake: it compiles them in projects of its own and
#        generates a launch function and a header for each. With make alone: Ninja has no rule for
#        the generated sources.
#   9.x  csrc/host/launch.asc in the language ASC of the toolkit's CMake package, with <<<>>>. The
#        older way is still there, but its launch functions allocate device memory at each launch.
# Written from the published sources of both and run over a simulated toolkit (tests/cann_toolkit).
# No machine of the project has CANN.
set(PYRERANK_CANN "" CACHE PATH "CANN toolkit")
set(PYRERANK_CANN_VERSION "" CACHE STRING "its version, such as 8.5.0")
set(PYRERANK_SOC "" CACHE STRING "chip, such as Ascend910B3")
if(NOT PYRERANK_CANN OR NOT PYRERANK_CANN_VERSION OR NOT PYRERANK_SOC)
  message(FATAL_ERROR "the npu target needs PYRERANK_CANN, PYRERANK_CANN_VERSION and PYRERANK_SOC")
endif()

# read by the toolkit's files
set(ASCEND_CANN_PACKAGE_PATH ${PYRERANK_CANN})
set(ENV{ASCEND_HOME_PATH} ${PYRERANK_CANN})  # setup.py sets it for the build as well
set(CMAKE_SKIP_RPATH TRUE)  # set_env.sh says where CANN's libraries are; 8.x insists

if(PYRERANK_CANN_VERSION VERSION_LESS 9)
  set(PYRERANK_FLOW ascendc_library)
  if(NOT CMAKE_GENERATOR MATCHES "Makefiles")
    message(FATAL_ERROR "CANN ${PYRERANK_CANN_VERSION} compiles kernels with make only: "
                        "cmake -G 'Unix Makefiles'")
  endif()
  set(SOC_VERSION ${PYRERANK_SOC})
  set(RUN_MODE npu)
  set(ASCEND_KERNEL_LAUNCH_ONLY ON)
  set(ASCEND_PYTHON_EXECUTABLE ${Python_EXECUTABLE})
  find_path(PYRERANK_ASCENDC_CMAKE ascendc.cmake REQUIRED NO_DEFAULT_PATH PATHS ${PYRERANK_CANN}
    PATH_SUFFIXES compiler/tikcpp/ascendc_kernel_cmake tools/tikcpp/ascendc_kernel_cmake
                  ascendc_devkit/tikcpp/samples/cmake)
  include(${PYRERANK_ASCENDC_CMAKE}/ascendc.cmake)
  ascendc_library(pyrerank_kernels STATIC ${KERNEL_SOURCES})
else()
  set(PYRERANK_FLOW asc)
  set(CMAKE_ASC_ARCHITECTURES dav-2201)  # Atlas A2 and A3
  set(CMAKE_ASC_RUN_MODE npu)
  find_package(ASC REQUIRED NO_DEFAULT_PATH PATHS ${PYRERANK_CANN}
    PATH_SUFFIXES lib64/cmake compiler/tikcpp/ascendc_kernel_cmake)
  enable_language(ASC)
  ascendc_library(pyrerank_kernels STATIC csrc/host/launch.asc)
  # 9.0 takes neither the architecture nor a level from CMake's variables
  target_compile_options(pyrerank_kernels PRIVATE --npu-arch=${CMAKE_ASC_ARCHITECTURES} -O3)
  target_include_directories(pyrerank_kernels PRIVATE ${PYRERANK_CANN}/include)
  target_compile_definitions(pyrerank_kernels PRIVATE PYRERANK_NPU=1)
endif()
message(STATUS "CANN ${PYRERANK_CANN_VERSION} in ${PYRERANK_CANN}, ${PYRERANK_SOC}: "
               "kernels by ${PYRERANK_FLOW}")
ascendc_include_directories(pyrerank_kernels PRIVATE ${CMAKE_SOURCE_DIR}/csrc/ascendc)
ascendc_compile_definitions(pyrerank_kernels PRIVATE ASCENDC_DUMP=0)

pyrerank_module(_C_npu)
target_compile_definitions(_C_npu PRIVATE PYRERANK_NPU=1)
if(PYRERANK_FLOW STREQUAL "asc")
  target_compile_definitions(_C_npu PRIVATE PYRERANK_ASC=1)
endif()
target_include_directories(_C_npu PRIVATE ${PYRERANK_CANN}/include)
target_link_directories(_C_npu PRIVATE ${PYRERANK_CANN}/lib64)
target_link_libraries(_C_npu PRIVATE pyrerank_kernels ascendcl)
