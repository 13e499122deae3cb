#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/memory.h"

namespace switchyard::cpu {

/** How the weights of a product are kept as codes. */
struct PackedForm {
  CodeType type;
  /** Groups of k of a step of scales; a scale that is for more of them is kept several times. */
  size_t step_groups;
  /** All scales are BF16. */
  bool narrow;
};

/** The form in which these matrices, which share panels, can be kept; none if not all of them are codes of one form that kernels widen. */
std::optional<PackedForm> packed_form_of(std::span<const MatrixSource* const> matrices);

/** Weights of one product in panels of 64 columns; see layout.h. */
class PackedWeights {
 public:
  /** `form`: codes are kept, in the order that PackedPanel has; none: BF16. */
  PackedWeights(size_t panels, size_t groups, std::optional<PackedForm> form);

  size_t panels() const { return panels_; }
  size_t groups() const { return groups_; }
  size_t bytes() const { return memory_.bytes(); }
  bool is_packed() const { return form_.has_value(); }
  /** Groups of k that must not be cut. */
  size_t step_groups() const { return form_ ? form_->step_groups : 1; }
  const uint16_t* panel(size_t index) const { return memory_.as<uint16_t>() + index * groups_ * panel_group_elements; }
  PackedPanel packed_panel(size_t index) const;

  /**
   * Makes rows of `source` from `first_row` on, at most `count`, the columns of a panel from `column` on. False if a code stands for NaN,
   * which only BF16 holds.
   */
  bool fill(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count);

 private:
  bool fill_codes(size_t panel_index, size_t column, const MatrixSource& source, size_t first_row, size_t count);
  size_t code_bytes() const;
  size_t steps() const { return divide_up(groups_, form_->step_groups); }

  size_t panels_;
  size_t groups_;
  std::optional<PackedForm> form_;
  /** Panels, and behind them the scales of all panels. */
  PackedMemory memory_;
  /** What was read last, for the next to use its memory. */
  std::vector<uint16_t> rows_;
  std::vector<uint8_t> codes_;
};

}  // namespace switchyard::cpu
