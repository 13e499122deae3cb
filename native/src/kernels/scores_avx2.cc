#include "kernels/flush.h"
#include "kernels/lanes.h"
#include "kernels/scores.h"

namespace switchyard::scores {
namespace {

constexpr std::size_t half = panel_width / 2;

/** One pair of elements of the weights of a panel. */
struct PanelPair {
  lanes::Pair low;
  lanes::Pair high;
};

SWITCHYARD_AVX2 inline PanelPair load_pair(const Bf16Pair* panel, std::size_t pair) {
  const auto* at = reinterpret_cast<const __m256i*>(panel + pair * panel_width);
  return {lanes::widen(_mm256_loadu_si256(at)), lanes::widen(_mm256_loadu_si256(at + 1))};
}

SWITCHYARD_AVX2 inline PanelPair load_pair(const float* panel, std::size_t pair) {
  const float* even = panel + 2 * pair * panel_width;
  const float* odd = even + panel_width;
  return {{_mm256_loadu_ps(even), _mm256_loadu_ps(odd)}, {_mm256_loadu_ps(even + half), _mm256_loadu_ps(odd + half)}};
}

/** `Rows` rows times one panel: 2 * Rows of the 16 registers hold the sums. */
template <std::size_t Rows, typename Weight>
[[gnu::noinline]] SWITCHYARD_AVX2 void add_tile(const Block<Weight>& block, std::size_t row, std::size_t panel) {
  const float* x = block.wide_rows + row * wide_row_stride;
  const Weight* weights = block.weights + panel * block.panel_stride;
  __m256 sums[Rows][2];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
  for (std::size_t p = 0; p < block.pairs; ++p) {
    if (panel == 0 && p < Rows * lines_per_row) prefetch_next(block, row, p);
    const auto [low, high] = load_pair(weights, p);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m256 odd = _mm256_broadcast_ss(x + r * wide_row_stride + odd_after + p);
      sums[r][0] = _mm256_fmadd_ps(odd, low.odd, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(odd, high.odd, sums[r][1]);
      const __m256 even = _mm256_broadcast_ss(x + r * wide_row_stride + p);
      sums[r][0] = _mm256_fmadd_ps(even, low.even, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(even, high.even, sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) {
    float* logits = block.logits + (row + r) * block.logit_stride + panel * panel_width;
    _mm256_storeu_ps(logits, _mm256_add_ps(_mm256_loadu_ps(logits), sums[r][0]));
    _mm256_storeu_ps(logits + half, _mm256_add_ps(_mm256_loadu_ps(logits + half), sums[r][1]));
  }
}

template <typename Weight>
void add(const Block<Weight>& block) {
  const FlushSubnormals flush;
  for (std::size_t panel = 0; panel < block.panel_count; ++panel) {
    std::size_t row = 0;
    for (; row + 4 <= block.row_count; row += 4) add_tile<4>(block, row, panel);
    for (; row < block.row_count; ++row) add_tile<1>(block, row, panel);
  }
}

}  // namespace

const Kernel<Bf16Pair> avx2_bf16{"avx2", true, add<Bf16Pair>};
const Kernel<float> avx2_float{"avx2", true, add<float>};

}  // namespace switchyard::scores
