#include <cstdlib>

#include "experts/cuda/device.h"
#include "runtime/error.h"

namespace switchyard::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // Clears what is not sticky: the next call must not find this error.
  cudaGetLastError();
  throw Error(status == cudaErrorMemoryAllocation ? Code::resource_exhausted : Code::device_lost,
              std::string("the CUDA device failed ") + what + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

void prepare_runtime() { setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }

void use_device(int device) { check(cudaSetDevice(device), "to be selected"); }

std::string device_name(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "to describe itself");
  return "cuda:" + std::to_string(device) + " (" + properties.name + ")";
}

DeviceMemory::DeviceMemory(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  check(cudaGetDevice(&device_), "to be found");
  const cudaError_t status = cudaMalloc(&data_, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "to tell its free memory");
    throw Error(Code::resource_exhausted, what + " needs " + std::to_string(bytes) + " bytes on " + device_name(device_) + "; " +
                                              std::to_string(free_bytes) + " of " + std::to_string(total_bytes) + " bytes are free");
  }
  check(status, "to give memory");
  bytes_ = bytes;
}

DeviceMemory::~DeviceMemory() {
  // Any thread may free it, and one that never chose a device would open the first one.
  if (data_ != nullptr && cudaSetDevice(device_) == cudaSuccess) cudaFree(data_);
}

void DeviceMemory::reserve(size_t bytes, const std::string& what) {
  if (bytes > bytes_) *this = DeviceMemory(bytes, what);
}

PinnedMemory::PinnedMemory(size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  const cudaError_t status = cudaHostAlloc(&data_, bytes, cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw Error(Code::resource_exhausted, what + " needs " + std::to_string(bytes) + " bytes of page-locked memory, which the system refused");
  }
  check(status, "to page-lock memory");
  bytes_ = bytes;
}

PinnedMemory::~PinnedMemory() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

void PinnedMemory::reserve(size_t bytes, const std::string& what) {
  if (bytes > bytes_) *this = PinnedMemory(bytes, what);
}

Stream::Stream(Priority priority) {
  int least = 0, greatest = 0;
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "to tell its priorities");
  const int chosen = priority == Priority::urgent ? greatest : least;
  check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, chosen), "to make a stream");
}
Stream::~Stream() { cudaStreamDestroy(stream_); }
void Stream::wait() const { check(cudaStreamSynchronize(stream_), "while it worked"); }

Event::Event() { check(cudaEventCreate(&event_), "to make an event"); }
Event::~Event() { cudaEventDestroy(event_); }
void Event::record(cudaStream_t stream) const { check(cudaEventRecord(event_, stream), "to record an event"); }
void Event::hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "to hold a stream"); }
void Event::wait() const { check(cudaEventSynchronize(event_), "while it worked"); }

double Event::seconds_since(const Event& earlier) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, earlier.event_, event_), "to tell a time");
  return milliseconds / 1000.0;
}

}  // namespace switchyard::cuda
