#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace switchyard::cuda {

/** The memory that is registered with the device. Regions do not overlap. Thread-safe. */
class PinnedRegions {
 public:
  void add(const void* memory, size_t bytes);
  /** False if no region begins there. */
  bool remove(const void* memory);
  /** Whether one region holds all these bytes. */
  bool holds(const void* memory, size_t bytes) const;
  /** Removes all, and returns where they began. */
  std::vector<void*> take_all();

 private:
  mutable std::mutex mutex_;
  /** First byte to end. */
  std::map<uintptr_t, uintptr_t> regions_;
};

}  // namespace switchyard::cuda
