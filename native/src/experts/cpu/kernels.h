#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "experts/activation.h"
#include "experts/cpu/layout.h"
#include "experts/packed_form.h"

namespace switchyard::cpu {

/** What sums over codes are multiplied by: for every `groups` groups of k one scale a column. */
struct Scales {
  /** [steps][64], in BF16 or in float32; the other one is null. */
  const uint16_t* narrow = nullptr;
  const float* wide = nullptr;
  /** Groups of k of a step, 1 to step_groups_max; 0: there are no scales. */
  size_t groups = 0;

  /** Those of the groups from `group` on, the first of a step. */
  Scales from(size_t group) const {
    const size_t skipped = groups == 0 ? 0 : group / groups * panel_columns;
    return {narrow == nullptr ? nullptr : narrow + skipped, wide == nullptr ? nullptr : wide + skipped, groups};
  }
};

constexpr size_t step_groups_max = 4;

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
  /** Rows of the next product, as many as `a`, to be fetched into the nearest cache meanwhile. */
  const uint16_t* next_a;
  /**
   * Weights that will be needed next, to be fetched from memory into the second-level cache meanwhile: `fetch_lines` cache
   * lines for every group of k, none or a power of two from 8 to 64.
   */
  const uint16_t* fetch;
  size_t fetch_lines;
};

/** A panel of weights as codes. */
struct PackedPanel {
  CodeType type;
  /** [groups][16][64][2] codes of 8 bits, or [groups][16][64] bytes of two codes, that of the even k in the lower half. */
  const uint8_t* codes;
  Scales scales;
};

/** What a code counts is so many times its value, and scales make up for it: E4M3 is read as the half float of the same bits. */
constexpr float unit_of(CodeType type) { return type == CodeType::f8_e4m3 ? 0x1p-8f : 1.0f; }

/** A TileProduct of one tile of few rows with all codes of a panel, in one go. */
struct CodedProduct {
  /** 1 to `coded_rows` of the kernels. */
  size_t rows;
  size_t groups;
  const uint16_t* a;
  PackedPanel b;
  /** Only written. */
  float* c;
};

/** What becomes of the sums of a panel. */
struct Epilogue {
  /** [64], added to the sums first. */
  const float* bias;
  GluForm glu;
};

constexpr size_t activation_count = 4;

/**
 * What one instruction set computes. Every element of a product is summed in the order of k, in float32 and step by step
 * where there are scales, whatever the number of rows and wherever k is cut, so its bits depend on its row and column alone.
 */
struct Kernels {
  /** As SWITCHYARD_CPU_ISA spells it. */
  std::string_view name;
  /** The most rows of a tile. */
  size_t tile_rows;
  /** The most rows that are better computed as one tile than as several: each weight then comes to the core once. */
  size_t single_tile_rows;
  /** Up to so many rows in one tile reading the weights is all that takes time, and the hardware's own prefetch is the best. */
  size_t streamed_rows;
  /** Whether this machine can run it. */
  bool (*supported)();
  void (*multiply)(const TileProduct& product);
  /** Up to so many rows in one tile are better multiplied with codes as they are than with what widen() makes of them. */
  size_t coded_rows;
  /** Null: coded_rows is 0. */
  void (*multiply_codes)(const CodedProduct& product);
  /** Groups of a panel as TileProduct has them: what the codes count, without scales. */
  void (*widen)(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out);
  /**
   * By Activation. With a gate: c [rows][64], columns 0 to 31 gate, 32 to 63 up -> h [rows][32], BF16. Without: c [rows][64] -> h
   * [2][rows][32].
   */
  void (*activate[activation_count])(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h);
  /** One row: 64 floats, with a bias added, to `columns` <= 64 BF16. */
  void (*store)(const float* c, const float* bias, uint16_t* out, size_t columns);
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
