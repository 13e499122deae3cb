#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/memory.h"

namespace switchyard::cpu {

/** Weights of one product in panels of 64 columns; see layout.h. */
class PackedWeights {
 public:
  PackedWeights(size_t panels, size_t groups);

  size_t panels() const { return panels_; }
  size_t groups() const { return groups_; }
  size_t bytes() const { return memory_.bytes(); }
  const uint16_t* panel(size_t index) const { return memory_.as<uint16_t>() + index * groups_ * panel_group_elements; }

  /** Makes rows of `source` from `first_row` on, at most `count`, the columns of a panel from `column` on. */
  void fill(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count);

 private:
  size_t panels_;
  size_t groups_;
  PackedMemory memory_;
  std::vector<uint16_t> rows_;
};

}  // namespace switchyard::cpu
