#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "device.h"

namespace fake_cuda {
namespace {

constexpr int poison = 0xff;
/** Of memory that is given out: more would take longer than what is tested. */
constexpr size_t poisoned_bytes_max = size_t{8} << 10;

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t told(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

/** One call of the runtime. */
template <typename Body>
cudaError_t call(Body body, bool waits = false) {
  Device::Lock lock(device().mutex);
  cudaError_t status = device().begin_call(lock, waits);
  if (status == cudaSuccess) {
    status = body(lock);
    device().end_call(lock);
  }
  return told(status);
}

/** Rows of bytes, one every `pitch`. */
struct Block {
  std::byte* begin;
  size_t pitch, width, height;

  size_t extent() const { return height == 0 ? 0 : (height - 1) * pitch + width; }
  std::byte* row(size_t i) const { return begin + i * pitch; }
};

Block block_of(const void* begin, size_t pitch, size_t width, size_t height) {
  return {const_cast<std::byte*>(static_cast<const std::byte*>(begin)), pitch, width, height};
}

size_t checksum(const Block& block) {
  size_t sum = 0;
  for (size_t i = 0; i < block.height; ++i) {
    sum = sum * 31 + std::hash<std::string_view>{}({reinterpret_cast<const char*>(block.row(i)), block.width});
  }
  return sum;
}

void copy(const Block& target, const Block& source) {
  for (size_t i = 0; i < target.height; ++i) std::memcpy(target.row(i), source.row(i), target.width);
}

// Operations run with the device's lock.
void fault(const Moment& moment, const std::string& text) { device().memory.hazards.push_back(moment.name.text() + ": " + text); }

/** An access to memory of the host; false: it must not be. */
bool reach_host(const Moment& moment, const Block& block, bool writes) {
  if (device().pinned.holds(block.begin, block.extent())) return device().pinned.access(block.begin, block.extent(), writes, moment);
  fault(moment, "the host's memory is page-locked no more");
  return false;
}

/** What is not page-locked is taken along at once. */
void copy_in(Device::Lock& lock, const Block& target, const Block& source, cudaStream_t stream) {
  ++device().counts.copies_in;
  if (!device().pinned.holds(source.begin, source.extent())) {
    ++device().counts.pageable_copies;
    std::vector<std::byte> taken(source.begin, source.begin + source.extent());
    device().enqueue(lock, stream, "a copy in", [target, source, taken](const Moment& moment) {
      if (writes(moment, target.begin, target.extent())) copy(target, {const_cast<std::byte*>(taken.data()), source.pitch, source.width, source.height});
    });
    return;
  }
  device().enqueue(lock, stream, "a copy in", [target, source, sum = checksum(source)](const Moment& moment) {
    if (!reach_host(moment, source, false) || !writes(moment, target.begin, target.extent())) return;
    if (checksum(source) != sum) fault(moment, "the host has changed what it copies");
    copy(target, source);
  });
  device().note_host_read(lock, stream, source.begin, source.extent(), [source] { return checksum(source); });
}

/** The host waits for a copy to memory that is not page-locked. */
cudaError_t copy_out(Device::Lock& lock, const Block& target, const Block& source, cudaStream_t stream) {
  const bool is_pinned = device().pinned.holds(target.begin, target.extent());
  for (size_t i = 0; i < target.height; ++i) std::memset(target.row(i), poison, target.width);
  device().enqueue(lock, stream, "a copy out", [target, source, is_pinned](const Moment& moment) {
    if ((!is_pinned || reach_host(moment, target, true)) && reads(moment, source.begin, source.extent())) copy(target, source);
  });
  if (is_pinned) return cudaSuccess;
  ++device().counts.pageable_copies;
  return device().wait_for(lock, stream);
}

cudaError_t copy_block(const Block& target, const Block& source, cudaMemcpyKind kind, cudaStream_t stream) {
  return call([&](Device::Lock& lock) {
    if (kind == cudaMemcpyDeviceToHost) return copy_out(lock, target, source, stream);
    copy_in(lock, target, source, stream);
    return cudaSuccess;
  });
}

}  // namespace

void reset(const Options& options) {
  last_error = cudaSuccess;
  device().reset(options);
}

Report report() {
  Device::Lock lock(device().mutex);
  return device().report(lock);
}

cudaError_t launch(cudaStream_t stream, const char* what, Run run) {
  return call([&](Device::Lock& lock) {
    device().enqueue(lock, stream, what, std::move(run));
    return cudaSuccess;
  });
}

bool reads(const Moment& moment, const void* begin, size_t bytes) { return device().memory.access(begin, bytes, false, moment); }
bool writes(const Moment& moment, const void* begin, size_t bytes) { return device().memory.access(begin, bytes, true, moment); }
bool reads_host(const Moment& moment, const void* begin, size_t bytes) { return reach_host(moment, block_of(begin, bytes, bytes, 1), false); }

void host_reads(const void* begin, size_t bytes) {
  Device::Lock lock(device().mutex);
  device().access_by_host(lock, begin, bytes, false);
}
void host_writes(const void* begin, size_t bytes) {
  Device::Lock lock(device().mutex);
  device().access_by_host(lock, begin, bytes, true);
}

void hold(bool held) {
  Device::Lock lock(device().mutex);
  device().hold_all(lock, held);
}

}  // namespace fake_cuda

using namespace fake_cuda;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorUnknown: return "cudaErrorUnknown";
  }
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = std::exchange(last_error, cudaSuccess);
  const Device::Lock lock(device().mutex);
  return device().lost ? cudaErrorIllegalAddress : error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  device().note_environment();
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  return call([&](Device::Lock&) {
    *device = 0;
    return cudaSuccess;
  });
}
cudaError_t cudaSetDevice(int device) {
  return call([&](Device::Lock&) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; });
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  return call([&](Device::Lock&) {
    std::snprintf(properties->name, sizeof properties->name, "fake device");
    properties->major = 9;
    properties->minor = 0;
    properties->totalGlobalMem = device().options.memory_bytes;
    return cudaSuccess;
  });
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int) {
  return call([&](Device::Lock&) {
    std::snprintf(id, static_cast<size_t>(length), "0000:00:00.0");
    return cudaSuccess;
  });
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  return call([&](Device::Lock&) {
    *total_bytes = device().options.memory_bytes;
    *free_bytes = *total_bytes - device().memory.bytes();
    return cudaSuccess;
  });
}

namespace {

cudaError_t allocate(void** memory, size_t bytes, Memory& owner) {
  *memory = device().pieces.give(bytes);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, poison, std::min(bytes, poisoned_bytes_max));
  owner.add(*memory, bytes);
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  return call([&](Device::Lock&) {
    if (bytes > device().options.memory_bytes - device().memory.bytes()) return cudaErrorMemoryAllocation;
    const cudaError_t status = allocate(memory, bytes, device().memory);
    device().counts.memory_bytes_max = std::max(device().counts.memory_bytes_max, device().memory.bytes());
    return status;
  });
}
// Waits for all streams, as the real one does.
cudaError_t cudaFree(void* memory) {
  return call([&](Device::Lock& lock) {
    ++device().counts.frees;
    const cudaError_t status = device().wait_for_all(lock);
    if (device().memory.remove(memory) > 0) device().pieces.take_back(memory);
    return status;
  }, true);
}
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  return call([&](Device::Lock&) { return allocate(memory, bytes, device().pinned); });
}
cudaError_t cudaFreeHost(void* memory) {
  return call([&](Device::Lock&) {
    if (device().pinned.remove(memory) == 0) return cudaErrorInvalidValue;
    device().pieces.take_back(memory);
    return cudaSuccess;
  });
}
cudaError_t cudaHostRegister(void* memory, size_t bytes, unsigned) {
  return call([&](Device::Lock&) {
    device().pinned.add(memory, bytes);
    ++device().counts.registrations;
    return cudaSuccess;
  });
}
cudaError_t cudaHostGetDevicePointer(void** address, void* memory, unsigned) {
  return call([&](Device::Lock&) {
    *address = memory;
    return device().pinned.holds(memory, 1) ? cudaSuccess : cudaErrorInvalidValue;
  });
}
cudaError_t cudaHostUnregister(void* memory) {
  return call([&](Device::Lock&) { return device().pinned.remove(memory) > 0 ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy_block(block_of(target, bytes, bytes, 1), block_of(source, bytes, bytes, 1), kind, stream);
}
cudaError_t cudaMemcpy2DAsync(void* target, size_t target_pitch, const void* source, size_t source_pitch, size_t width, size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  if (width > target_pitch || width > source_pitch) return told(cudaErrorInvalidValue);
  return copy_block(block_of(target, target_pitch, width, height), block_of(source, source_pitch, width, height), kind, stream);
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return launch(stream, "a memset", [=](const Moment& moment) {
    if (writes(moment, memory, bytes)) std::memset(memory, value, bytes);
  });
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  return call([&](Device::Lock&) {
    *least = 0;
    *greatest = -1;
    return cudaSuccess;
  });
}
// Priorities are a matter of speed.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  return call([&](Device::Lock& lock) {
    *stream = device().add_stream(lock);
    return cudaSuccess;
  });
}
// The real one returns at once and lets the stream end by itself; nothing here counts on that.
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call([&](Device::Lock& lock) {
    device().remove_stream(lock, stream);
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call([&](Device::Lock& lock) { return device().wait(lock, stream); }, true);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return call([&](Device::Lock& lock) {
    ++device().counts.queries;
    if (device().counts.queries == device().options.failing_query) return device().lose(lock);
    return device().has_ended(lock, stream) ? cudaSuccess : cudaErrorNotReady;
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return call([&](Device::Lock& lock) {
    device().hold(lock, stream, *event);
    return cudaSuccess;
  });
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return call([&](Device::Lock& lock) {
    device().enqueue(lock, stream, "a host function", [=](const Moment&) { function(data); }, true);
    return cudaSuccess;
  });
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return call([&](Device::Lock&) {
    *event = new Event{};
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call([&](Device::Lock& lock) {
    device().record(lock, stream, *event);
    return cudaSuccess;
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call([&](Device::Lock& lock) { return device().wait(lock, *event); }, true);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  return call([&](Device::Lock& lock) {
    for (const Event* event : {begin, end}) {
      if (event->last && !device().knows(lock, *event)) device().memory.hazards.push_back("the host asks for the time of " + event->last->name.text() + " and has not waited for it");
      if (!device().has_happened(lock, *event)) return cudaErrorNotReady;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->last->when - begin->last->when).count();
    return cudaSuccess;
  });
}
