#pragma once

#include <bit>
#include <cstdint>

namespace switchyard {

/** The float whose upper half is `bits`. Exact. */
inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/** Nearest BF16, ties to even; too large becomes infinity, NaN stays a (quiet) NaN of the same sign. */
inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace switchyard
