#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/streaming.h"

namespace switchyard::scores {

/** Experts side by side in the lanes of a panel. */
inline constexpr std::size_t panel_width = 16;
/** Pairs of elements of `hidden` that are summed before the sum joins the logit. Part of the rounding: constant. */
inline constexpr std::size_t block_pairs = 128;
/** From row to row of a block; more than block_pairs, lest all rows fall into the same sets of the cache. */
inline constexpr std::size_t row_stride = block_pairs + 16;
inline constexpr std::size_t wide_row_stride = 2 * block_pairs + 16;
/** In a block's row as floats, from an even element to the odd one of its pair. */
inline constexpr std::size_t odd_after = block_pairs;

/** Two elements of a row, or of an expert's weights, in BF16: the even one in the lower half. */
using Bf16Pair = std::uint32_t;

/** Weights of one pair of elements and one expert. */
template <typename Weight>
inline constexpr std::size_t weights_per_pair = 2;
template <>
inline constexpr std::size_t weights_per_pair<Bf16Pair> = 1;

/**
 * A share of a matrix product: for some rows, all experts and at most block_pairs pairs of elements. Weight is float, or
 * Bf16Pair where BF16 holds all weights exactly: that takes half the memory, and gives the same bits.
 *
 * The sum of a (row, expert) is defined exactly, whatever computes it: from zero, pair after pair, first the odd
 * element, then the even one, each by a fused multiply-add in float32 that reads subnormals as zero and flushes
 * them to zero; then that sum is added to the logit in the same mode. This is what VDPBF16PS does in one instruction.
 */
template <typename Weight>
struct Block {
  /** Row r, pair p: rows[r * row_stride + p] holds the even element in its lower half, the odd one in its upper. */
  const Bf16Pair* rows;
  /** As floats, for kernels that read those instead: the even one at wide_rows[r * wide_row_stride + p], the odd one odd_after behind. */
  const float* wide_rows;
  std::size_t row_count;
  std::size_t pairs;
  /**
   * Panel n, pair p, expert e of the panel: weights[n * panel_stride + p * panel_width + e]. Floats: the even elements of
   * pair p are line 2 * p of panel_width floats, the odd ones line 2 * p + 1.
   */
  const Weight* weights;
  std::size_t panel_count;
  std::size_t panel_stride;
  /** Row r, expert e of panel n: logits[r * logit_stride + n * panel_width + e]. */
  float* logits;
  std::size_t logit_stride;
  /** Memory that will be wanted next, row_count * lines_per_row lines: brought to cache on the way. */
  std::uintptr_t next;
};

inline constexpr std::size_t lines_per_row = block_pairs * sizeof(std::uint32_t) / line_bytes;

/** Brings line `step` of a tile's share of `next`; the tile begins at row `row`. */
template <typename Weight>
void prefetch_next(const Block<Weight>& block, std::size_t row, std::size_t step) {
  const std::uintptr_t at = block.next + (row * lines_per_row + step) * line_bytes;
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
}

/** One implementation for one instruction set; all give the same bits. */
template <typename Weight>
struct Kernel {
  const char* name;
  /** Whether it reads `wide_rows`, and not `rows`. */
  bool wide;
  void (*add)(const Block<Weight>& block);
};

/** Those that this processor runs, fastest first. */
template <typename Weight>
std::span<const Kernel<Weight>> kernels();

extern const Kernel<Bf16Pair> avx2_bf16;
extern const Kernel<float> avx2_float;
extern const Kernel<Bf16Pair> avx512_bf16;
extern const Kernel<float> avx512_float;
/** By VDPBF16PS. */
extern const Kernel<Bf16Pair> avx512_dot;

}  // namespace switchyard::scores
