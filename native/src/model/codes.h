#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <limits>

/** Values of codes of few bits, as the OCP formats have them (Microscaling Formats, v1.0; 8-bit Floating Point, v1.0). */
namespace switchyard::codes {

/** E4M3: no infinities; all ones in exponent and fraction is NaN. */
inline constexpr std::array<float, 256> e4m3 = [] {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15;
    const int fraction = code & 7;
    float value = exponent == 0 ? static_cast<float>(fraction) / 512 : static_cast<float>(8 + fraction) / 8 / 64;
    for (int i = 1; i < exponent; ++i) value *= 2;
    if ((code & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
    values[code] = code < 128 ? value : -value;
  }
  return values;
}();

inline constexpr std::array<float, 16> e2m1 = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                               -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/** A power of two; 255 is NaN. */
inline float e8m0(std::uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(std::uint32_t{code} << 23);
}

}  // namespace switchyard::codes
