#include <immintrin.h>

#include "kernels/flush.h"
#include "kernels/scores.h"

#define SWITCHYARD_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))

namespace switchyard::scores {
namespace {

/** One pair of elements of a row, and how it joins the sums of a panel. */
template <typename Weight>
struct Pair;

template <>
struct Pair<Bf16Pair> {
  using Panel = __m512bh;
  __m512bh element;

  SWITCHYARD_AVX512_BF16 explicit Pair(Bf16Pair x) : element((__m512bh)_mm512_set1_epi32(static_cast<int>(x))) {}
  SWITCHYARD_AVX512_BF16 static Panel load(const Bf16Pair* weights, std::size_t pair) {
    return (__m512bh)_mm512_loadu_si512(weights + pair * panel_width);
  }
  SWITCHYARD_AVX512_BF16 __m512 add(__m512 sum, const Panel& panel) const { return _mm512_dpbf16_ps(sum, element, panel); }
};

template <>
struct Pair<float> {
  struct Panel {
    __m512 even;
    __m512 odd;
  };
  __m512 even;
  __m512 odd;

  SWITCHYARD_AVX512_BF16 explicit Pair(Bf16Pair x)
      : even(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x << 16)))),
        odd(_mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(x & 0xffff0000u)))) {}
  SWITCHYARD_AVX512_BF16 static Panel load(const float* weights, std::size_t pair) {
    const float* even = weights + 2 * pair * panel_width;
    return {_mm512_loadu_ps(even), _mm512_loadu_ps(even + panel_width)};
  }
  SWITCHYARD_AVX512_BF16 __m512 add(__m512 sum, const Panel& panel) const {
    return _mm512_fmadd_ps(even, panel.even, _mm512_fmadd_ps(odd, panel.odd, sum));
  }
};

/** `Rows` rows times `Panels` panels: every sum of the tile stays in a register of its own. */
template <std::size_t Rows, std::size_t Panels, typename Weight>
[[gnu::noinline]] SWITCHYARD_AVX512_BF16 void add_tile(const Block<Weight>& block, std::size_t row, std::size_t panel) {
  const Bf16Pair* x = block.rows + row * row_stride;
  const Weight* weights = block.weights + panel * block.panel_stride;
  __m512 sums[Rows][Panels];
#pragma GCC unroll 16
  for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) sums[r][n] = _mm512_setzero_ps();
  }
  for (std::size_t p = 0; p < block.pairs; ++p) {
    if (panel == 0 && p < Rows * lines_per_row) prefetch_next(block, row, p);
    typename Pair<Weight>::Panel w[Panels];
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) w[n] = Pair<Weight>::load(weights + n * block.panel_stride, p);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows; ++r) {
      const Pair<Weight> element(x[r * row_stride + p]);
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) sums[r][n] = element.add(sums[r][n], w[n]);
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

template <std::size_t Panels, typename Weight>
void add_panels(const Block<Weight>& block, std::size_t panel) {
  std::size_t row = 0;
  for (; row + 12 <= block.row_count; row += 12) add_tile<12, Panels>(block, row, panel);
  for (; row + 4 <= block.row_count; row += 4) add_tile<4, Panels>(block, row, panel);
  for (; row < block.row_count; ++row) add_tile<1, Panels>(block, row, panel);
}

template <typename Weight>
void add(const Block<Weight>& block) {
  const FlushSubnormals flush;
  std::size_t panel = 0;
  for (; panel + 2 <= block.panel_count; panel += 2) add_panels<2>(block, panel);
  if (panel < block.panel_count) add_panels<1>(block, panel);
}

}  // namespace

Kernel avx512_bf16_kernel() { return {"avx512-bf16", add<Bf16Pair>, add<float>}; }

}  // namespace switchyard::scores
