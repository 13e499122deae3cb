# The CUDA backend (src/experts/cuda/*.cu) as a module of its own, switchyard_cuda.so beside the addon: what is linked here
# need not be on machines without CUDA. The .cc files of that folder need no CUDA and belong to switchyard_core.

# list_cublaslt_tiles(TARGET HEADER): gives the target "cublaslt_tiles.inc", a table of all tiles that cublasLt.h has names for. There
# are hundreds, and more with each release.
function(list_cublaslt_tiles target header)
  file(STRINGS ${header} lines REGEX "CUBLASLT_MATMUL_TILE_[0-9]+x[0-9]+ *=")
  set(tiles "")
  foreach(line ${lines})
    string(REGEX REPLACE ".*(CUBLASLT_MATMUL_TILE_[0-9]+x([0-9]+)).*" "{\\1, \\2},\n" tile "${line}")
    string(APPEND tiles "${tile}")
  endforeach()
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/${target}_tiles)
  file(CONFIGURE OUTPUT ${folder}/cublaslt_tiles.inc CONTENT "${tiles}")
  target_include_directories(${target} PRIVATE ${folder})
endfunction()

if(SWITCHYARD_CUDA STREQUAL "OFF")
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(SWITCHYARD_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SWITCHYARD_CUDA is ON, and there is no CUDA compiler: set CMAKE_CUDA_COMPILER or CUDACXX.")
  endif()
  message(STATUS "CUDA: no compiler, the backend is left out")
  return()
endif()

# Machine code for the architectures that the compiler knows, and for later ones what their drivers translate.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known_architectures)
  foreach(architecture 80 89 90 100)
    if(known_architectures MATCHES "compute_${architecture}([^0-9a-z]|$)")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
      set(newest_architecture ${architecture})
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest_architecture}-virtual)
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# Older versions of CMake do not know what the compilers of CUDA 13 call it.
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)

file(GLOB cuda_sources CONFIGURE_DEPENDS src/experts/cuda/*.cu)
list(FILTER cuda_sources EXCLUDE REGEX "/entry\\.cu$")
add_library(switchyard_cuda_core STATIC ${cuda_sources})
target_compile_options(switchyard_cuda_core PUBLIC "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-fvisibility=hidden>")
find_file(SWITCHYARD_CUBLASLT_HEADER cublasLt.h PATHS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH REQUIRED)
list_cublaslt_tiles(switchyard_cuda_core ${SWITCHYARD_CUBLASLT_HEADER})
# The runtime is linked in and looks for the driver when it is used; cuBLASLt comes from where it was built with.
target_link_libraries(switchyard_cuda_core PUBLIC switchyard_core CUDA::cudart_static CUDA::cublasLt)

add_library(switchyard_cuda MODULE src/experts/cuda/entry.cu)
set_target_properties(switchyard_cuda PROPERTIES PREFIX "" SUFFIX ".so")
target_link_libraries(switchyard_cuda PRIVATE switchyard_cuda_core)
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
