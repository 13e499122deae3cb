#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/bf16.h"
#include "kernels/convert.h"
#include "model/stored_dtype.h"

/** Floats as they are stored, as BF16 or float32. */
namespace switchyard {

/** IEEE binary16 to float, exact. */
inline float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

constexpr bool is_stored_as(StoredDtype dtype, const uint16_t*) { return dtype == StoredDtype::bf16; }
constexpr bool is_stored_as(StoredDtype dtype, const float*) { return dtype == StoredDtype::f32; }

template <typename Stored>
Stored at(const std::byte* bytes, size_t index) {
  Stored stored;
  std::memcpy(&stored, bytes + index * sizeof stored, sizeof stored);
  return stored;
}

inline void convert(const std::byte* bytes, StoredDtype dtype, size_t count, uint16_t* out) {
  narrow_rows(bytes, dtype == StoredDtype::f32 ? RowDtype::f32 : RowDtype::f16, count, out);
}

inline void convert(const std::byte* bytes, StoredDtype dtype, size_t count, float* out) {
  const auto widen = dtype == StoredDtype::bf16 ? bf16_to_float : f16_to_float;
  for (size_t i = 0; i < count; ++i) out[i] = widen(at<uint16_t>(bytes, i));
}

/** Elements that are side by side and no codes. */
template <typename Out>
void place(const std::byte* bytes, StoredDtype dtype, size_t count, Out* out) {
  if (is_stored_as(dtype, out)) std::memcpy(out, bytes, count * sizeof *out);
  else convert(bytes, dtype, count, out);
}

}  // namespace switchyard
