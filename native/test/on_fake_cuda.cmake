# What a device is checked with, on the fake one: the backend's module, its tests and its benchmark. scripts/check-gpu-bundle.sh.
set(on_fake_cuda ${CMAKE_CURRENT_BINARY_DIR}/on_fake_cuda)
set(on_fake_cuda_sources ../src/experts/cuda/entry.cu ../bench/gpu_bench.cu)
set_source_files_properties(${on_fake_cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")

add_library(fake_cuda_process OBJECT fake_cuda/process/process.cc fake_cuda/hosts/together.cc)
target_link_libraries(fake_cuda_process PUBLIC fake_cuda)

# In the place of cuBLASLt, which programs do not find by themselves. The fake of its functions is within the programs.
file(CONFIGURE OUTPUT on_fake_cuda/empty.cc CONTENT "")
add_library(cublasLt_on_fake SHARED ${on_fake_cuda}/empty.cc)
set_target_properties(cublasLt_on_fake PROPERTIES OUTPUT_NAME cublasLt SOVERSION 13 LIBRARY_OUTPUT_DIRECTORY ${on_fake_cuda})

add_library(switchyard_cuda_on_fake MODULE ../src/experts/cuda/entry.cu)
add_executable(experts_cuda_on_fake experts_cuda.cc)
target_link_libraries(experts_cuda_on_fake PRIVATE GTest::gtest GTest::gtest_main)
add_executable(gpu_bench_on_fake ../bench/gpu_bench.cu)
foreach(target switchyard_cuda experts_cuda gpu_bench)
  target_link_libraries(${target}_on_fake PRIVATE fake_cuda_process cublasLt_on_fake)
  target_link_options(${target}_on_fake PRIVATE -Wl,--no-as-needed)
  set_target_properties(${target}_on_fake PROPERTIES PREFIX "" OUTPUT_NAME ${target} SKIP_BUILD_RPATH ON
    LIBRARY_OUTPUT_DIRECTORY ${on_fake_cuda} RUNTIME_OUTPUT_DIRECTORY ${on_fake_cuda})
endforeach()
