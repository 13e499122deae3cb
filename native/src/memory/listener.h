#pragma once

#include <cstddef>

namespace switchyard {

/** Hears of memory that is taken from the system and given back, so that a device can register it once. Thread-safe. */
class MemoryListener {
 public:
  virtual ~MemoryListener() = default;
  virtual void mapped(void* memory, size_t bytes) noexcept = 0;
  /** Before the memory goes back. */
  virtual void unmapping(void* memory) noexcept = 0;
};

}  // namespace switchyard
