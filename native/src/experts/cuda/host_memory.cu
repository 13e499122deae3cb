#include <cuda_runtime.h>

#include "experts/cuda/host_memory.h"

namespace switchyard::cuda {

void HostMemory::mapped(void* memory, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  if (cudaSetDevice(device_) != cudaSuccess || cudaHostRegister(memory, bytes, cudaHostRegisterMapped) != cudaSuccess) {
    cudaGetLastError();
    return;
  }
  void* address = nullptr;
  if (cudaHostGetDevicePointer(&address, memory, 0) == cudaSuccess && address == memory) regions_.add(memory, bytes);
  else unregister(memory);
}

void HostMemory::unmapping(void* memory) noexcept {
  const std::lock_guard lock(mutex_);
  if (regions_.remove(memory)) unregister(memory);
}

void HostMemory::unregister(void* memory) noexcept {
  // Slabs end on any thread, and one that never chose a device would open the first one.
  if (cudaSetDevice(device_) != cudaSuccess || cudaHostUnregister(memory) != cudaSuccess) cudaGetLastError();
}

void HostMemory::close() noexcept {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (void* memory : regions_.take_all()) unregister(memory);
}

}  // namespace switchyard::cuda
