#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <string>
#include <utility>

namespace switchyard::cuda {

/**
 * Throws, saying what was done and why it failed, unless `status` is success: RESOURCE_EXHAUSTED if there was no memory
 * for it, otherwise DEVICE_LOST, for after any other failure the device cannot be relied on.
 */
void check(cudaError_t status, const char* what);

/**
 * To be called before anything else of CUDA: it takes the number of its hardware queues from the environment, and streams that share
 * one wait for each other. What the environment says already stays.
 */
void prepare_runtime();

/** Makes the device the one of the calling thread. */
void use_device(int device);

/** "cuda:0 (NVIDIA H100 80GB HBM3)". */
std::string device_name(int device);

/** Memory of the current device. */
class DeviceMemory {
 public:
  DeviceMemory() = default;
  /** Throws RESOURCE_EXHAUSTED, saying what needs how much and what is free. */
  DeviceMemory(size_t bytes, const std::string& what);
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  size_t bytes() const { return bytes_; }
  template <typename Element>
  Element* as() const {
    return static_cast<Element*>(data_);
  }
  /** Makes room for at least `bytes`; what it held is lost if it grows. Nothing may be using it. Stays as it is if it throws. */
  void reserve(size_t bytes, const std::string& what);

 private:
  void swap(DeviceMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(device_, other.device_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  int device_ = 0;
};

/** Page-locked host memory, which the copy engines reach. */
class PinnedMemory {
 public:
  PinnedMemory() = default;
  /** Throws RESOURCE_EXHAUSTED. */
  PinnedMemory(size_t bytes, const std::string& what);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&& other) noexcept { swap(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    swap(other);
    return *this;
  }

  template <typename Element>
  Element* as() const {
    return static_cast<Element*>(data_);
  }
  /** As DeviceMemory::reserve. */
  void reserve(size_t bytes, const std::string& what);

 private:
  void swap(PinnedMemory& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/** A stream that does not wait for the default stream. */
class Stream {
 public:
  /** What is queued in an urgent one begins before what waits in others. */
  enum class Priority { usual, urgent };
  explicit Stream(Priority priority = Priority::usual);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  operator cudaStream_t() const { return stream_; }
  /** Blocks until everything in it has ended: never while batches run. */
  void wait() const;

 private:
  cudaStream_t stream_ = nullptr;
};

/** A moment in a stream, with its time. */
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(cudaStream_t stream) const;
  /** What comes later in the stream begins after the moment recorded last. */
  void hold(cudaStream_t stream) const;
  /** Blocks until the moment recorded last, if any. Never while batches run. */
  void wait() const;
  /** Seconds from `earlier` to this. Both must have passed. */
  double seconds_since(const Event& earlier) const;

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace switchyard::cuda
