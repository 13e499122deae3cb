#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "experts/activation.h"
#include "experts/cpu/layout.h"
#include "experts/packed_form.h"

namespace switchyard::cpu {

/** What sums over codes are multiplied by: for every `groups` groups of k one scale a column. Before that, zero points times the sum of the row are taken from them. */
struct Scales {
  /** [steps][columns], in BF16 or in float32; the other one is null. */
  const uint16_t* narrow = nullptr;
  const float* wide = nullptr;
  /** [steps][columns]; null: there are none. */
  const int8_t* zeros = nullptr;
  /** Of a panel. */
  size_t columns = 0;
  /** Groups of k of a step, 1 to step_groups_max; 0: there are no scales. */
  size_t groups = 0;

  /** Those of the groups from `group` on, the first of a step. */
  Scales from(size_t group) const {
    const size_t skipped = groups == 0 ? 0 : group / groups * columns;
    const auto after = [&](const auto* first) { return first == nullptr ? nullptr : first + skipped; };
    return {after(narrow), after(wide), after(zeros), columns, groups};
  }
};

/** Of the elements of each row in each step of scales. */
struct StepSums {
  /** [steps][rows]; null where there are no zero points. */
  const float* sums = nullptr;
  /** Of all tiles. */
  size_t rows = 0;

  float of(size_t step, size_t row) const { return sums[step * rows + row]; }
  StepSums from(size_t step, size_t row) const { return {sums == nullptr ? nullptr : sums + step * rows + row, rows}; }
};

constexpr size_t step_groups_max = 4;

/** A panel, or a part of it, as codes, in the order that PanelOrder tells. */
struct PackedPanel {
  /** Among all of a product. */
  size_t panel;
  CodeType type;
  const uint8_t* codes;
  Scales scales;
};

/**
 * What a code counts is so many times its value, and scales make up for it: E4M3 is read as the half float of the same bits, and E2M1 as a float
 * of the same bits times what a row can be multiplied by without leaving the floats.
 */
constexpr float unit_of(CodeType type) { return type == CodeType::f8_e4m3 ? 0x1p-8f : type == CodeType::f4_e2m1 ? 0x1p-16f : 1.0f; }

/** A row that an expert is asked for. */
struct RowReference {
  const uint16_t* source;
  uint16_t* output;
  /** Null: the row is used as it is. */
  const float* weight;
};

/** What becomes of finished sums. */
struct Finish {
  /** Identity: they are rounded as they are. Gated: the first half of a panel's columns is gate, the second up. */
  Activation activation;
  GluForm glu;
  /** [panels][columns of a panel], added to the sums first. */
  const float* bias;
  /**
   * Of the result. What is beyond is not written to output rows, and is zero in rows of A even where the row is infinite, or padding
   * would make the next product's results NaN.
   */
  size_t columns;
  /** Rows of A of the next product, which reads all columns of the panels; null: output rows. */
  uint16_t* next;
  const RowOrder* next_order;
  /** All rows of A but those that pad it. */
  std::span<const RowReference> rows;
  /** Every output row begins at a cache line. */
  bool begins_lines;
};

/** Some tiles of rows times some panels of a band, over one part of k. */
struct PartProduct {
  const RowOrder& order;
  /** All rows. */
  const uint16_t* a;
  size_t part;
  size_t first_tile, end_tile;
  size_t first_panel, panels;
  /** The part of the first panel; those of the others follow. */
  const uint16_t* b;
  /** If there are any: each of their steps is summed by itself, multiplied by its scales, and added. There is one panel. */
  Scales scales;
  /** Of all rows, from the first step of the part on. */
  StepSums step_sums;
  /** Weights that will be needed next, as they are kept: so many cache lines for each group, to be fetched from memory meanwhile. Null: none. */
  const void* next;
  size_t next_lines;
  /** What has been summed in earlier parts, in an order that is the kernels' own: 32 bits for every column of the panels and row of the tiles. */
  float* sums;
  const Finish& finish;

  size_t groups() const { return order.parts.size(part); }
  bool is_first() const { return part == 0; }
  bool is_last() const { return part + 1 == order.parts.parts; }
  /** Rows of the tiles. */
  size_t rows() const { return order.tiles.begin(end_tile) - order.tiles.begin(first_tile); }
};

/** The only tile of rows times all codes of one panel, or of two of the same weights. */
struct CodedProduct {
  const RowOrder& order;
  const uint16_t* a;
  std::span<const PackedPanel> panels;
  StepSums step_sums;
  /** Room for [panels][rows][columns of a panel]. */
  float* sums;
  const Finish& finish;

  size_t rows() const { return order.tiles.count; }
  size_t groups() const { return order.parts.count; }
};

/**
 * What one instruction set computes. Every element of a product is summed in an order that k alone determines, in float32 and step by
 * step where there are scales, whatever the number of rows and wherever k is cut, so its bits depend on its row and column alone.
 */
struct Kernels {
  /** As SWITCHYARD_CPU_ISA spells it. */
  std::string_view name;
  PanelOrder order;
  /** Rows computed together: enough to use each weight often, few enough that they stay near the core. */
  size_t block_rows;
  /** Rows of a tile are a multiple of these. */
  size_t row_unit;
  /** The most rows of a tile. */
  size_t tile_rows;
  /** The most rows that are better computed as one tile than as several: each weight then comes to the core once. */
  size_t single_tile_rows;
  /** Up to so many rows in one tile reading the weights is all that takes time, and the hardware's own prefetch is the best. */
  size_t streamed_rows;
  /** Whether this machine can run it. */
  bool (*supported)();
  /** In the last part of k the sums are finished. Output rows can be read by other threads then. */
  void (*multiply)(const PartProduct& product);
  /** Up to so many rows in one tile are better multiplied with codes as they are than with what widen() makes of them. Bands are panels then. */
  size_t coded_rows;
  /** Whether such rows are better multiplied with two panels at once, which lie far apart. Null: they never are. */
  bool (*takes_pairs)(CodeType type, size_t rows);
  /** Sums are finished. Null: coded_rows is 0. */
  void (*multiply_coded)(const CodedProduct& product);
  /** What the codes of so many groups of a panel count, as BF16. */
  void (*widen)(CodeType type, const uint8_t* codes, size_t groups, uint16_t* out);
};

extern const Kernels amx_bf16_kernels;
extern const Kernels avx512_bf16_kernels;
extern const Kernels avx2_kernels;

/** Every instruction set that is built in, best first. */
std::span<const Kernels* const> all_kernels();

/**
 * The best kernels of this machine, or those that SWITCHYARD_CPU_ISA names.
 * Throws INVALID_ARGUMENT if that name is unknown, or if this machine cannot run it (or any).
 */
const Kernels& choose_kernels();

}  // namespace switchyard::cpu
