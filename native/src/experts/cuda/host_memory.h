#pragma once

#include "experts/cuda/pinned_regions.h"
#include "memory/listener.h"

namespace switchyard::cuda {

/**
 * Registers host memory with a device as it is mapped, so that the copy engines and kernels reach the rows in it where they lie.
 * Memory that cannot be registered, or that the device knows under another address, is used all the same: its rows pass through
 * staging memory.
 */
class HostMemory final : public MemoryListener {
 public:
  explicit HostMemory(int device) : device_(device) {}
  ~HostMemory() override { close(); }

  void mapped(void* memory, size_t bytes) noexcept override;
  /** To lock a gigabyte of pages takes the system a quarter of a second and more: never for a slab while rows wait. */
  size_t region_bytes() const noexcept override { return size_t{256} << 20; }
  void unmapping(void* memory) noexcept override;
  /** Unregisters everything; later calls do nothing. No copy may be under way. */
  void close() noexcept;

  bool holds(const void* memory, size_t bytes) const { return regions_.holds(memory, bytes); }

 private:
  void unregister(void* memory) noexcept;

  int device_;
  /** One change at a time: memory must not be unregistered by two, nor registered after close(). */
  std::mutex mutex_;
  bool closed_ = false;
  PinnedRegions regions_;
};

}  // namespace switchyard::cuda
