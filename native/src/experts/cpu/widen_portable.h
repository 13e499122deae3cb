#pragma once

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "kernels/bf16.h"
#include "model/codes.h"

namespace switchyard::cpu {

/** The scale of a column for a group of k. */
inline float scale_of(const PackedPanel& panel, size_t group, size_t column) {
  const size_t at = group / panel.groups_per_scale * panel_columns + column;
  return panel.narrow_scales != nullptr ? bf16_to_float(panel.narrow_scales[at]) : panel.wide_scales[at];
}

inline float value_of(CodeType type, uint8_t code) {
  switch (type) {
    case CodeType::f8_e4m3: return codes::e4m3[code];
    case CodeType::f4_e2m1: return codes::e2m1[code];
    case CodeType::i8: return static_cast<int8_t>(code);
    default: return static_cast<float>(code) - 8;
  }
}

/** Kernels::widen for any processor. */
inline void widen_portably(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out) {
  const bool whole_bytes = bits_of(panel.type) == 8;
  for (size_t group = first_group; group < first_group + groups; ++group) {
    for (size_t pair = group * group_depth / 2; pair < (group + 1) * group_depth / 2; ++pair) {
      for (size_t column = 0; column < panel_columns; ++column, out += 2) {
        const float scale = scale_of(panel, group, column);
        const size_t at = pair * panel_columns + column;
        const uint8_t low = whole_bytes ? panel.codes[at * 2] : panel.codes[at] & 15;
        const uint8_t high = whole_bytes ? panel.codes[at * 2 + 1] : panel.codes[at] >> 4;
        out[0] = float_to_bf16(value_of(panel.type, low) * scale);
        out[1] = float_to_bf16(value_of(panel.type, high) * scale);
      }
    }
  }
}

}  // namespace switchyard::cpu
