#include <immintrin.h>

#include "kernels/flush.h"
#include "kernels/scores.h"

#define SWITCHYARD_AVX512 __attribute__((target("avx512f")))
#define SWITCHYARD_AVX512_BF16 __attribute__((target("avx512f,avx512bf16")))

namespace switchyard::scores {
namespace {

/** The weights of one pair of elements and one panel, as floats. */
struct PanelPair {
  __m512 even;
  __m512 odd;
};

SWITCHYARD_AVX512 inline PanelPair load_pair(const Bf16Pair* panel, std::size_t pair) {
  const __m512i both = _mm512_loadu_si512(panel + pair * panel_width);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}

SWITCHYARD_AVX512 inline PanelPair load_pair(const float* panel, std::size_t pair) {
  const float* even = panel + 2 * pair * panel_width;
  return {_mm512_loadu_ps(even), _mm512_loadu_ps(even + panel_width)};
}

/** The sums of `Rows` rows times `Panels` panels, each in a register of its own. */
template <std::size_t Rows, std::size_t Panels>
struct Sums {
  __m512 of[Rows][Panels];

  [[gnu::always_inline]] SWITCHYARD_AVX512 void clear() {
#pragma GCC unroll 24
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) of[r][n] = _mm512_setzero_ps();
    }
  }

  [[gnu::always_inline]] SWITCHYARD_AVX512 void join(float* logits, std::size_t stride) const {
#pragma GCC unroll 24
    for (std::size_t r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) {
        float* at = logits + r * stride + n * panel_width;
        _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), of[r][n]));
      }
    }
  }
};

template <std::size_t Rows, std::size_t Panels, typename Weight>
[[gnu::noinline]] SWITCHYARD_AVX512 void add_tile(const Block<Weight>& block, std::size_t row, std::size_t panel) {
  const float* x = block.wide_rows + row * wide_row_stride;
  const Weight* weights = block.weights + panel * block.panel_stride;
  Sums<Rows, Panels> sums;
  sums.clear();
  for (std::size_t p = 0; p < block.pairs; ++p) {
    if (panel == 0 && p < Rows * lines_per_row) prefetch_next(block, row, p);
    PanelPair w[Panels];
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) w[n] = load_pair(weights + n * block.panel_stride, p);
#pragma GCC unroll 24
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 odd = _mm512_set1_ps(x[r * wide_row_stride + odd_after + p]);
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) sums.of[r][n] = _mm512_fmadd_ps(odd, w[n].odd, sums.of[r][n]);
    }
#pragma GCC unroll 24
    for (std::size_t r = 0; r < Rows; ++r) {
      const __m512 even = _mm512_set1_ps(x[r * wide_row_stride + p]);
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) sums.of[r][n] = _mm512_fmadd_ps(even, w[n].even, sums.of[r][n]);
    }
  }
  sums.join(block.logits + row * block.logit_stride + panel * panel_width, block.logit_stride);
}

template <std::size_t Rows, std::size_t Panels>
[[gnu::noinline]] SWITCHYARD_AVX512_BF16 void add_dot_tile(const Block<Bf16Pair>& block, std::size_t row,
                                                           std::size_t panel) {
  const Bf16Pair* x = block.rows + row * row_stride;
  const Bf16Pair* weights = block.weights + panel * block.panel_stride;
  Sums<Rows, Panels> sums;
  sums.clear();
  for (std::size_t p = 0; p < block.pairs; ++p) {
    if (panel == 0 && p < Rows * lines_per_row) prefetch_next(block, row, p);
    __m512bh w[Panels];
#pragma GCC unroll 2
    for (std::size_t n = 0; n < Panels; ++n) {
      w[n] = (__m512bh)_mm512_loadu_si512(weights + n * block.panel_stride + p * panel_width);
    }
#pragma GCC unroll 24
    for (std::size_t r = 0; r < Rows; ++r) {
      const auto element = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r * row_stride + p]));
#pragma GCC unroll 2
      for (std::size_t n = 0; n < Panels; ++n) sums.of[r][n] = _mm512_dpbf16_ps(sums.of[r][n], element, w[n]);
    }
  }
  sums.join(block.logits + row * block.logit_stride + panel * panel_width, block.logit_stride);
}

template <std::size_t Panels, bool Dot, typename Weight>
void add_panels(const Block<Weight>& block, std::size_t panel) {
  const auto tile = [&]<std::size_t Rows>(std::size_t row) {
    if constexpr (Dot) {
      add_dot_tile<Rows, Panels>(block, row, panel);
    } else {
      add_tile<Rows, Panels>(block, row, panel);
    }
  };
  std::size_t row = 0;
  for (; row + 12 <= block.row_count; row += 12) tile.template operator()<12>(row);
  for (; row + 4 <= block.row_count; row += 4) tile.template operator()<4>(row);
  for (; row < block.row_count; ++row) tile.template operator()<1>(row);
}

template <bool Dot, typename Weight>
void add(const Block<Weight>& block) {
  const FlushSubnormals flush;
  std::size_t panel = 0;
  for (; panel + 2 <= block.panel_count; panel += 2) add_panels<2, Dot>(block, panel);
  if (panel < block.panel_count) add_panels<1, Dot>(block, panel);
}

}  // namespace

const Kernel<Bf16Pair> avx512_bf16{"avx512", true, add<false, Bf16Pair>};
const Kernel<float> avx512_float{"avx512", true, add<false, float>};
const Kernel<Bf16Pair> avx512_dot{"avx512-bf16", false, add<true, Bf16Pair>};

}  // namespace switchyard::scores
