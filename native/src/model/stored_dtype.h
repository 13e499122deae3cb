#pragma once

#include <cstddef>

namespace switchyard {

/** The last five are codes, which are multiplied by a scale; u8 stands 128 above its value, u4 stands 8 above. Of two u4 or f4 in a byte the lower is first. */
enum class StoredDtype { bf16, f16, f32, f8_e4m3, f4_e2m1, i8, u8, u4 };
constexpr bool is_code(StoredDtype dtype) { return dtype >= StoredDtype::f8_e4m3; }
/** Of one element. */
constexpr size_t bits_of(StoredDtype dtype) {
  if (dtype == StoredDtype::f32) return 32;
  if (dtype == StoredDtype::f4_e2m1 || dtype == StoredDtype::u4) return 4;
  return is_code(dtype) ? 8 : 16;
}

}  // namespace switchyard
