#pragma once

#include "experts/cpu/kernels.h"

namespace switchyard::cpu {

/** Of kernels that multiply one tile with one panel at a time; see PanelOrder. */
constexpr size_t panel_columns = 64;
/** Elements of a panel per group. */
constexpr size_t panel_group_elements = panel_columns * group_depth;

/** Rows of one tile times one panel, over some groups of k. */
struct TileProduct {
  /** 1 to `tile_rows` of the kernels, or to `single_tile_rows` in a product of one tile. */
  size_t rows;
  /** Groups of k. */
  size_t groups;
  /** [groups][rows][32] */
  const uint16_t* a;
  /** [groups][16][64][2] */
  const uint16_t* b;
  /** [rows][64] float32. */
  float* c;
  /** Add to `c`; otherwise `c` is only written. */
  bool accumulate;
  /** If there are any: each step is summed by itself, multiplied by its scales, and added. */
  Scales scales;
  StepSums step_sums;
  /** Rows of the next product, as many as `a`, to be fetched into the nearest cache meanwhile. */
  const uint16_t* next_a;
  /**
   * Weights that will be needed next, to be fetched from memory into the second-level cache meanwhile: `fetch_lines` cache
   * lines for every group of k, none or a power of two from 8 to 64.
   */
  const char* fetch;
  size_t fetch_lines;
};

/** What becomes of the sums of a panel. */
struct Epilogue {
  /** [64], added to the sums first. */
  const float* bias;
  GluForm glu;
};

constexpr size_t activation_count = static_cast<size_t>(Activation::identity) + 1;

struct TileKernels {
  void (*multiply)(const TileProduct& product);
  /** Writes the sums alone. Null: coded_rows is 0. */
  void (*multiply_codes)(const CodedProduct& product);
  /**
   * By Activation. With a gate: c [rows][64], columns 0 to 31 gate, 32 to 63 up -> h [rows][32], BF16. Without: c [rows][64] -> h
   * [2][rows][32].
   */
  void (*finish[activation_count])(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h);
  /** One row: 64 floats, with a bias added, to `columns` <= 64 BF16. */
  void (*store)(const float* c, const float* bias, uint16_t* out, size_t columns);
};

/** Kernels::multiply of one panel, tile after tile: bands have no more. `streamed_rows`: of the Kernels. */
void multiply_by_tiles(const TileKernels& kernels, size_t streamed_rows, const PartProduct& product);

/** Kernels::multiply_coded. */
void multiply_coded_tile(const TileKernels& kernels, const CodedProduct& product);

}  // namespace switchyard::cpu
