# The npu target: kernels by CANN's compiler, host sources by the ordinary one. setup.py has found
# CANN and the chip.
#
# Both generations of CANN offer ascendc_library, which writes a launch function and a header for
# each kernel:
#   8.x  from the toolkit's ascendc.cmake (legacy flow);
#   9.x  from find_package(ASC), where the kernels are of CMake's language ASC; the headers come
#        with ENABLE_ACLRT_LAUNCH.
# Written from the published sources of both. No machine of the project has CANN: neither has run.
set(PYRERANK_CANN "" CACHE PATH "CANN toolkit")
set(PYRERANK_SOC "" CACHE STRING "chip, such as Ascend910B3")
if(NOT PYRERANK_CANN OR NOT PYRERANK_SOC)
  message(FATAL_ERROR "the npu target needs PYRERANK_CANN and PYRERANK_SOC")
endif()

set(ASCEND_CANN_PACKAGE_PATH ${PYRERANK_CANN})
set(SOC_VERSION ${PYRERANK_SOC})
set(RUN_MODE npu)

set(legacy_places
  compiler/tikcpp/ascendc_kernel_cmake tools/tikcpp/ascendc_kernel_cmake
  ascendc_devkit/tikcpp/samples/cmake)
list(TRANSFORM legacy_places PREPEND ${PYRERANK_CANN}/)
find_path(PYRERANK_ASCENDC_CMAKE ascendc.cmake PATHS ${legacy_places} NO_DEFAULT_PATH)

set(CMAKE_ASC_ARCHITECTURES dav-2201)  # Atlas A2 and A3; must precede find_package
set(CMAKE_ASC_RUN_MODE npu)
set(CMAKE_ASC_STANDARD 17)
find_package(ASC QUIET PATHS ${PYRERANK_CANN})

if(ASC_FOUND)
  enable_language(ASC)
  set(ENABLE_ACLRT_LAUNCH ON)
  ascendc_library(pyrerank_kernels STATIC ${KERNEL_SOURCES})
elseif(PYRERANK_ASCENDC_CMAKE)
  set(ASCEND_KERNEL_LAUNCH_ONLY ON)
  set(ASCEND_PYTHON_EXECUTABLE ${Python_EXECUTABLE})
  include(${PYRERANK_ASCENDC_CMAKE}/ascendc.cmake)
  ascendc_library(pyrerank_kernels STATIC ${KERNEL_SOURCES})
else()
  message(FATAL_ERROR "no ascendc.cmake and no CMake package ASC under ${PYRERANK_CANN}: "
                      "this must be the full Ascend-cann-toolkit (8.1 or newer), not nnrt")
endif()
ascendc_include_directories(pyrerank_kernels PRIVATE ${CMAKE_SOURCE_DIR}/csrc/ascendc)
ascendc_compile_definitions(pyrerank_kernels PRIVATE ASCENDC_DUMP=0)

pyrerank_module(_C)
target_compile_definitions(_C PRIVATE PYRERANK_NPU=1)
target_include_directories(_C PRIVATE ${PYRERANK_CANN}/include)
target_link_directories(_C PRIVATE ${PYRERANK_CANN}/lib64)
target_link_libraries(_C PRIVATE pyrerank_kernels ascendcl)
