#pragma once

#include <cstddef>
#include <cstdint>

/**
 * The order of rows and weights in memory that every instruction set's kernel reads.
 *
 * Weights of a product C = A · Bᵀ stand in panels of 64 columns of C: [panel][k / 2][64][2] BF16, so that
 * one line holds 16 columns of two neighbouring k, as vdpbf16ps and tdpbf16ps take them. A panel is read
 * from its first byte to its last.
 *
 * Rows of A stand in tiles of a few rows: [tile][k / 32][row of the tile][32] BF16. One row's 32
 * elements are one cache line, so packing copies whole lines, and so does the epilogue that writes the
 * rows of the second product.
 *
 * Both are padded with zeros to whole panels and to whole groups of 32 k.
 */
namespace switchyard::cpu {

/** Columns of a weight panel. */
constexpr size_t panel_columns = 64;
/** Elements of k in a group: one cache line of BF16. */
constexpr size_t group_depth = 32;
/** Elements of a panel per group. */
constexpr size_t panel_group_elements = panel_columns * group_depth;

constexpr size_t divide_up(size_t value, size_t divisor) { return (value + divisor - 1) / divisor; }

/** `count` things in a row, cut into parts that differ by one at most: rows into tiles, k into blocks, panels into tasks. */
struct Split {
  size_t count;
  size_t parts;

  /** As few parts as hold `count` things with at most `part_max` in each. */
  static constexpr Split into_parts_of(size_t part_max, size_t count) { return {count, divide_up(count, part_max)}; }

  /** First of a part; begin(parts) is the count. */
  constexpr size_t begin(size_t part) const { return part * count / parts; }
  constexpr size_t size(size_t part) const { return begin(part + 1) - begin(part); }
};

}  // namespace switchyard::cpu
