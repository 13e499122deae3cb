#include "experts/cpu/weights.h"

#include <algorithm>
#include <cstring>

namespace switchyard::cpu {

PackedWeights::PackedWeights(size_t panels, size_t groups)
    : panels_(panels), groups_(groups), memory_(panels * groups * panel_group_elements * sizeof(uint16_t), "expert weights") {}

void PackedWeights::fill(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  if (first_row >= source.rows) return;
  count = std::min(count, source.rows - first_row);
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
}

}  // namespace switchyard::cpu
