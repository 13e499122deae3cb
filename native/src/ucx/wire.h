#pragma once

#include <cstdint>
#include <cstring>

#include "ucx/fabric.h"

namespace switchyard::ucx {

/** The active-message id that carries every message of the product. */
inline constexpr unsigned message_id = 0x5A;

/** The active-message header. Both ends are little-endian x86-64. */
struct WireHeader {
  static constexpr uint32_t expected_magic = 0x31445953;  // "SYD1"

  uint32_t magic = expected_magic;
  uint32_t meta_bytes = 0;
  uint64_t channel = 0;
  uint64_t row_bytes = 0;
  /** Counts the messages of a channel from 0: UCX may complete a long message after a short one that followed it. */
  uint64_t sequence = 0;
  Key key{};
};
static_assert(sizeof(WireHeader) == 48);

/** Compares in constant time. */
inline bool same_key(const Key& left, const Key& right) {
  unsigned difference = 0;
  for (size_t i = 0; i < left.size(); ++i) difference |= left[i] ^ right[i];
  return difference == 0;
}

}  // namespace switchyard::ucx
