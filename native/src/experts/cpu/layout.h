#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

/**
 * The order of rows and weights in memory. An instruction set's kernels say what a panel is; the rest is common.
 *
 * k stands in groups of 32, one cache line of a row, and is cut into parts of some groups. Weights of a product
 * C = A · Bᵀ stand in panels of some columns of C, panels in bands: [band][part][panel][group][tile][16][columns of the
 * tile][2] BF16, so that a line holds 16 columns of two neighbouring k, as vdpbf16ps and tdpbf16ps take them, and
 * weights are read from the first byte to the last, whatever the number of rows.
 *
 * Rows of A stand in tiles of a few rows: [part][tile][group][row of the tile][32] BF16. One row's 32 elements are one
 * cache line, so packing copies whole lines, and so does what writes the rows of the second product.
 *
 * Both are padded with zeros to whole panels, to whole groups, and rows to whole tiles where the kernels want them.
 */
namespace switchyard::cpu {

/** Elements of k in a group: one cache line of BF16. */
constexpr size_t group_depth = 32;

constexpr size_t divide_up(size_t value, size_t divisor) { return (value + divisor - 1) / divisor; }

/** `count` things in a row, cut at multiples of `unit` into parts that differ by one unit at most: rows into tiles, k into parts, panels into tasks. */
struct Split {
  size_t count;
  size_t parts;
  size_t unit = 1;

  /** As few parts as hold `count` things with at most `part_max` in each, or a unit. */
  static constexpr Split into_parts_of(size_t part_max, size_t count, size_t unit = 1) {
    return {count, divide_up(divide_up(count, unit), std::max<size_t>(1, part_max / unit)), unit};
  }

  /** First of a part; begin(parts) is the count. */
  constexpr size_t begin(size_t part) const { return std::min(part * divide_up(count, unit) / parts * unit, count); }
  constexpr size_t size(size_t part) const { return begin(part + 1) - begin(part); }
  /** The most in a part. */
  constexpr size_t largest() const { return divide_up(divide_up(count, unit), parts) * unit; }
  /** In which a thing is: the last that begins at or before it. */
  constexpr size_t part_of(size_t thing) const { return ((thing / unit + 1) * parts - 1) / divide_up(count, unit); }
};

/** How an instruction set's kernels read weights. */
struct PanelOrder {
  /** Of a panel; 32 or 64. */
  size_t columns;
  /** That stand together for two neighbouring k: `columns`, or 16. */
  size_t tile_columns;
  /** Panels that take turns with each part of k. With one, k may be cut anywhere after weights were packed. */
  size_t band_panels;
  /** The most groups of a part. */
  size_t part_groups;
  /**
   * Codes stand in blocks of 16 bytes, of four columns: those of 8 bits are of two pairs of k, one behind the other, as BF16 has them; those of 4
   * bits are of eight k, with 32 bits for each column, the even k in their lower half and the odd ones in the upper half. Otherwise codes have the
   * order of BF16.
   */
  bool code_blocks;

  /** Elements of a panel per group. */
  constexpr size_t group_elements() const { return columns * group_depth; }
  /** Of a column and the first of two neighbouring k within a group of a panel. */
  constexpr size_t element(size_t column, size_t k) const {
    return column / tile_columns * tile_columns * group_depth + k / 2 * tile_columns * 2 + column % tile_columns * 2;
  }
  /** Bits of codes of a column in a block; without blocks, of a pair of k. */
  constexpr size_t code_run_bits(size_t bits) const { return code_blocks ? 32 : 2 * bits; }
  /** Where the codes, of so many bits, of a column, or of four where there are blocks, begin within a group of a panel: a byte. */
  constexpr size_t code_byte(size_t column, size_t bits) const {
    return column / tile_columns * tile_columns * group_depth * bits / 8 + column % tile_columns * code_run_bits(bits) / 8;
  }
};

/** Groups of k of rows whose elements are results of a product before: it writes whole panels. */
constexpr size_t groups_of_result(const PanelOrder& order, size_t columns) {
  return divide_up(columns, order.columns) * order.columns / group_depth;
}

/** Where rows of A are. */
struct RowOrder {
  /** Of rows. */
  Split tiles;
  /** Of groups. */
  Split parts;

  size_t elements() const { return tiles.count * parts.count * group_depth; }
  /** Of the first group of a part in a tile. */
  size_t element(size_t part, size_t tile) const {
    return (parts.begin(part) * tiles.count + tiles.begin(tile) * parts.size(part)) * group_depth;
  }
  /** Of a group in a tile. */
  size_t element_of_group(size_t group, size_t tile) const {
    const size_t part = parts.part_of(group);
    return element(part, tile) + (group - parts.begin(part)) * tiles.size(tile) * group_depth;
  }
};

}  // namespace switchyard::cpu
