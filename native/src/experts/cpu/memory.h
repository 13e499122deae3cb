#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard::cpu {

constexpr size_t page_bytes = 4096;

/** Zeroed memory for weights and rows in packed order, in huge pages where the system gives them. */
class PackedMemory {
 public:
  PackedMemory() = default;
  /** Throws RESOURCE_EXHAUSTED if the system gives no memory; `what` names its use in the message. */
  PackedMemory(size_t bytes, const char* what);
  ~PackedMemory();
  PackedMemory(PackedMemory&& other) noexcept;
  PackedMemory& operator=(PackedMemory&& other) noexcept;

  size_t bytes() const { return bytes_; }

  template <typename Element>
  Element* as() const {
    return static_cast<Element*>(data_);
  }

  /** Makes room for at least `bytes`, in whole huge pages where that is not little; what it held is lost if it grows. */
  void reserve(size_t bytes, const char* what);

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/** The share of such memory that the system puts into huge pages, 0 to 1: some is written, and looked up in /proc/self/smaps. */
double huge_page_share();

}  // namespace switchyard::cpu
