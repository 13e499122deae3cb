#include "experts/cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/bf16.h"

namespace switchyard::cpu {
namespace {

/** Of the scales of rows. */
size_t scales_of(const MatrixSource& matrix) { return divide_up(matrix.columns, matrix.packed->columns_per_scale); }

/** Scales far from these would take sums out of the normal floats. */
bool is_usual(float scale) { return scale == 0 || (std::abs(scale) > 0x1p-100f && std::abs(scale) < 0x1p100f); }

size_t memory_bytes(size_t panels, size_t groups, const std::optional<PackedForm>& form) {
  const size_t elements = panels * groups * panel_group_elements;
  if (!form) return elements * sizeof(uint16_t);
  const size_t scales = panels * divide_up(groups, form->step_groups) * panel_columns;
  return elements * bits_of(form->type) / 8 + scales * (form->narrow ? sizeof(uint16_t) : sizeof(float));
}

}  // namespace

std::optional<PackedForm> packed_form_of(std::span<const MatrixSource* const> matrices) {
  const std::optional<PackedSource>& first = matrices[0]->packed;
  if (!first) return std::nullopt;
  const size_t columns = first->columns_per_scale;
  if (columns % group_depth != 0 && columns < matrices[0]->columns) return std::nullopt;
  bool narrow = true;
  for (const MatrixSource* const matrix : matrices) {
    if (!matrix->packed || !matrix->packed->same_form(*first)) return std::nullopt;
    std::vector<float> scales(matrix->rows * scales_of(*matrix));
    matrix->packed->scales(0, matrix->rows, scales.data());
    if (!std::ranges::all_of(scales, [&](float scale) { return is_usual(scale); })) return std::nullopt;
    narrow = narrow && std::ranges::all_of(scales, [](float scale) { return bf16_to_float(float_to_bf16(scale)) == scale; });
  }
  if (columns >= matrices[0]->columns) return PackedForm{first->type, step_groups_max, narrow};
  const size_t groups_per_scale = columns / group_depth;
  const size_t step_groups = groups_per_scale <= step_groups_max ? groups_per_scale : std::gcd(groups_per_scale, step_groups_max);
  return PackedForm{first->type, step_groups, narrow};
}

PackedWeights::PackedWeights(size_t panels, size_t groups, std::optional<PackedForm> form)
    : panels_(panels), groups_(groups), form_(form), memory_(memory_bytes(panels, groups, form), "expert weights") {}

size_t PackedWeights::code_bytes() const { return groups_ * panel_group_elements * bits_of(form_->type) / 8; }

PackedPanel PackedWeights::packed_panel(size_t index) const {
  const uint8_t* const codes = memory_.as<uint8_t>();
  const uint8_t* const scales = codes + panels_ * code_bytes();
  const size_t first = index * steps() * panel_columns;
  return {
      .type = form_->type,
      .codes = codes + index * code_bytes(),
      .scales = {.narrow = form_->narrow ? reinterpret_cast<const uint16_t*>(scales) + first : nullptr,
                 .wide = form_->narrow ? nullptr : reinterpret_cast<const float*>(scales) + first,
                 .groups = form_->step_groups},
  };
}

bool PackedWeights::fill(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  if (first_row >= source.rows) return true;
  count = std::min(count, source.rows - first_row);
  if (form_) return fill_codes(panel_index, column, source, first_row, count);
  const size_t depth = source.columns;
  rows_.resize(count * depth);
  source.read(first_row, count, rows_.data());

  uint16_t* const panel = memory_.as<uint16_t>() + panel_index * groups_ * panel_group_elements;
  // A few columns at a time: rows lie powers of two apart, and many such streams share few cache sets.
  constexpr size_t columns_together = 8;
  for (size_t first = 0; first < count; first += columns_together) {
    const size_t end = std::min(first + columns_together, count);
    for (size_t k = 0; k < depth; k += 2) {
      const size_t bytes = std::min<size_t>(2, depth - k) * sizeof(uint16_t);
      for (size_t row = first; row < end; ++row) {
        std::memcpy(panel + k * panel_columns + (column + row) * 2, rows_.data() + row * depth + k, bytes);
      }
    }
  }
  return true;
}

bool PackedWeights::fill_codes(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  const size_t depth = source.columns;
  const PackedPanel panel = packed_panel(panel_index);
  auto* const codes = const_cast<uint8_t*>(panel.codes);
  // Room for an even number of columns.
  std::vector<uint8_t> rows(count * depth + 1);
  if (!source.packed->codes(first_row, count, rows.data())) return false;
  const bool whole_bytes = bits_of(form_->type) == 8;
  // What pads a row of codes that stand above their value is nothing, not the least.
  const uint8_t nothing = form_->type == CodeType::u4 ? 8 : 0;
  for (size_t row = 0; row < count; ++row) {
    const uint8_t* const from = rows.data() + row * depth;
    for (size_t k = 0; k < groups_ * group_depth; k += 2) {
      const uint8_t low = k < depth ? from[k] : nothing;
      const uint8_t high = k + 1 < depth ? from[k + 1] : nothing;
      const size_t at = k / 2 * panel_columns + column + row;
      if (whole_bytes) {
        codes[at * 2] = low;
        codes[at * 2 + 1] = high;
      } else {
        codes[at] = static_cast<uint8_t>(low | high << 4);
      }
    }
  }
  const size_t scale_count = scales_of(source);
  std::vector<float> scales(count * scale_count);
  source.packed->scales(first_row, count, scales.data());
  const size_t step_columns = form_->step_groups * group_depth;
  for (size_t row = 0; row < count; ++row) {
    for (size_t step = 0; step < steps(); ++step) {
      const size_t its_scale = std::min(step * step_columns / source.packed->columns_per_scale, scale_count - 1);
      const float scale = scales[row * scale_count + its_scale] / unit_of(form_->type);
      const size_t at = step * panel_columns + column + row;
      if (form_->narrow) const_cast<uint16_t*>(panel.scales.narrow)[at] = float_to_bf16(scale);
      else const_cast<float*>(panel.scales.wide)[at] = scale;
    }
  }
  return true;
}

}  // namespace switchyard::cpu
