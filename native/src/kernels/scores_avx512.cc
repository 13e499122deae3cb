#include <immintrin.h>

#include "kernels/flush.h"
#include "kernels/scores.h"

#define SWITCHYARD_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))

namespace switchyard::scores {
namespace {

/** `Rows` rows times `Panels` panels: every sum of the tile stays in a register of its own. */
template <std::size_t Rows, std::size_t Panels>
[[gnu::noinline]] SWITCHYARD_AVX512_BF16 void add_tile(const Block& block, std::size_t row, std::size_t panel) {
  const std::uint32_t* x = block.rows + row * row_stride;
  const std::uint32_t* weights = block.weights + panel * block.panel_stride;
  __m512 sums[Rows][Panels];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) sums[r][n] = _mm512_setzero_ps();
  }
  for (std::size_t p = 0; p < block.pairs; ++p) {
    if (panel == 0 && p < Rows * lines_per_row) prefetch_next(block, row, p);
    __m512bh w[Panels];
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) {
      w[n] = (__m512bh)_mm512_loadu_si512(weights + n * block.panel_stride + p * panel_width);
    }
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
      const auto element = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r * row_stride + p]));
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], element, w[n]);
    }
  }
#pragma GCC unroll 16
  for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) {
      float* logits = block.logits + (row + r) * block.logit_stride + (panel + n) * panel_width;
      _mm512_storeu_ps(logits, _mm512_add_ps(_mm512_loadu_ps(logits), sums[r][n]));
    }
  }
}

template <std::size_t Panels>
void add_panels(const Block& block, std::size_t panel) {
  std::size_t row = 0;
  for (; row + 12 <= block.row_count; row += 12) add_tile<12, Panels>(block, row, panel);
  for (; row + 4 <= block.row_count; row += 4) add_tile<4, Panels>(block, row, panel);
  for (; row < block.row_count; ++row) add_tile<1, Panels>(block, row, panel);
}

}  // namespace

void add_avx512_bf16(const Block& block) {
  const FlushSubnormals flush;
  std::size_t panel = 0;
  for (; panel + 2 <= block.panel_count; panel += 2) add_panels<2>(block, panel);
  if (panel < block.panel_count) add_panels<1>(block, panel);
}

}  // namespace switchyard::scores
