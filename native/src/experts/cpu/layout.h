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

/** Splits `count` rows as evenly as possible into as few tiles of at most `tile_rows` as hold them. */
struct Tiling {
  size_t count;
  size_t tiles;

  Tiling(size_t row_count, size_t tile_rows) : count(row_count), tiles(divide_up(row_count, tile_rows)) {}

  /** First row of a tile; first_row(tiles) is the row count. */
  size_t first_row(size_t tile) const { return tile * count / tiles; }
  size_t rows(size_t tile) const { return first_row(tile + 1) - first_row(tile); }
};

}  // namespace switchyard::cpu
