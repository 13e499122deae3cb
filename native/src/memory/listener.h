#pragma once

#include <cstddef>

namespace switchyard {

/** Hears of memory that is taken from the system and given back, so that a device can register it once. Thread-safe. */
class MemoryListener {
 public:
  virtual ~MemoryListener() = default;
  virtual void mapped(void* memory, size_t bytes) noexcept = 0;
  /** How large the pieces of memory should be that it hears of, because each costs it much; 0: as they are needed. */
  virtual size_t region_bytes() const noexcept { return 0; }
  /** Before the memory goes back. */
  virtual void unmapping(void* memory) noexcept = 0;
};

}  // namespace switchyard
