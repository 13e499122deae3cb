#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
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
  /** Codes have zero points. */
  bool shifted;
  /** Which column of the matrices each k is; empty: the same. */
  std::vector<uint32_t> column_order;
};

/** The form in which these matrices, which share panels, can be kept; none if not all of them are codes of one form that kernels widen. */
std::optional<PackedForm> packed_form_of(std::span<const MatrixSource* const> matrices);

/** Weights of one product, in memory that somebody else has; see layout.h. */
class PackedWeights {
 public:
  /** `form`: codes are kept, in the order of BF16; none: BF16. */
  PackedWeights(const PanelOrder& order, size_t panels, size_t groups, std::optional<PackedForm> form);
  /** Memory for the weights of some products, one after the other, which then lie there. Throws RESOURCE_EXHAUSTED. */
  static PackedMemory allocate(std::initializer_list<PackedWeights*> products);

  const PanelOrder& order() const { return order_; }
  size_t panels() const { return panels_; }
  size_t groups() const { return groups_; }
  /** In whole pages. */
  size_t bytes() const;
  bool is_packed() const { return form_.has_value(); }
  /** Of packed ones. */
  CodeType code_type() const { return form_->type; }
  /** Which column of the matrix each k is; empty: the same. */
  std::span<const uint32_t> column_order() const { return form_ ? std::span<const uint32_t>(form_->column_order) : std::span<const uint32_t>(); }
  /** Panels share bands as evenly as they can; of the last part of k in a band to the first of the next, weights follow each other. */
  Split bands() const { return Split::into_parts_of(order_.band_panels, panels_); }
  /** Groups of k of a step of scales; 0: codes have no zero points. */
  size_t shifted_step_groups() const { return form_ && form_->shifted ? form_->step_groups : 0; }
  /** Cuts k into parts of so many groups at most, where steps of scales and what one panel of a product before gives stay whole. */
  Split cut(size_t part_groups) const;
  /** The parts of k in which the order has them. */
  Split parts() const { return cut(order_.part_groups); }
  /** Of a panel's group of k, without scales. */
  size_t group_bytes() const { return order_.group_elements() * (form_ ? bits_of(form_->type) : 16) / 8; }
  /** A part of a panel, as it is kept. */
  const uint8_t* at(size_t panel, const Split& parts, size_t part) const {
    return memory_ + element(panel, parts, part) / order_.group_elements() * group_bytes();
  }
  /** The same in BF16. */
  const uint16_t* part(size_t panel, const Split& parts, size_t part) const { return reinterpret_cast<const uint16_t*>(at(panel, parts, part)); }
  PackedPanel packed_part(size_t panel, const Split& parts, size_t part) const;

  /**
   * Makes rows of `source` from `first_row` on, at most `count`, the columns of a panel from `column` on. False if a code stands for NaN,
   * which only BF16 holds.
   */
  bool fill(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count);

 private:
  bool fill_codes(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count);
  void fill_scales(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count);
  size_t element(size_t panel, const Split& parts, size_t part) const;
  /**
   * Calls place(columns, number of the first, element of the group) for eight of [count, depth] `rows` after the other, and every group of a panel as
   * weights are packed. Whatever they have not is `nothing`.
   */
  template <typename Element, typename Place>
  void place_rows(size_t panel, const Element* rows, size_t count, size_t depth, Element nothing, const Place& place) const;
  /** The first scale of a panel. */
  size_t first_scale(size_t panel) const { return panel * steps() * order_.columns; }
  template <typename Scale>
  Scale* scales() const;
  int8_t* zeros() const;
  size_t scale_count() const { return panels_ * steps() * order_.columns; }
  size_t scale_bytes() const { return scale_count() * (form_->narrow ? sizeof(uint16_t) : sizeof(float)); }
  size_t steps() const { return divide_up(groups_, form_->step_groups); }

  PanelOrder order_;
  size_t panels_;
  size_t groups_;
  std::optional<PackedForm> form_;
  /** Panels, behind them the scales of all panels, and behind those their zero points. */
  uint8_t* memory_ = nullptr;
  /** What was read last, for the next to use its memory. */
  std::vector<uint16_t> rows_;
  std::vector<uint8_t> codes_;
};

}  // namespace switchyard::cpu
