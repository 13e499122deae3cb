#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/tiles.h"

#define SWITCHYARD_TARGET __attribute__((target("avx2,fma")))
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

struct Vector {
  __m256 lanes;

  SWITCHYARD_INLINE static Vector set(float value) { return {_mm256_set1_ps(value)}; }
  SWITCHYARD_INLINE static Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  // The instruction gives its second operand where one is NaN: NaN in `b` stays.
  SWITCHYARD_INLINE static Vector minimum(Vector a, Vector b) { return {_mm256_min_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE static Vector maximum(Vector a, Vector b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE static Vector round(Vector a) { return {_mm256_round_ps(a.lanes, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  SWITCHYARD_INLINE static Vector absolute(Vector a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.lanes)}; }
  SWITCHYARD_INLINE static Vector multiply_add(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes)};
  }
  /** a * 2^n in two steps, because 2^n alone may not be a float. */
  SWITCHYARD_INLINE static Vector scale(Vector a, Vector n) {
    const __m256i exponent = _mm256_cvtps_epi32(n.lanes);
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    return a * power(half) * power(_mm256_sub_epi32(exponent, half));
  }
  SWITCHYARD_INLINE static Vector power(__m256i n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
  }
  SWITCHYARD_INLINE static Vector select_negative(Vector sign, Vector negative, Vector otherwise) {
    return {_mm256_blendv_ps(otherwise.lanes, negative.lanes, sign.lanes)};
  }
  SWITCHYARD_INLINE friend Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.lanes, b.lanes)}; }
};

#include "experts/cpu/activation_math.h"

/** Eight floats to BF16, to the nearest, ties to even; NaN becomes a quiet NaN. */
SWITCHYARD_INLINE __m128i round_eight(Vector value) {
  const __m256i bits = _mm256_castps_si256(value.lanes);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value.lanes, value.lanes, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  return _mm256_castsi256_si128(packed);
}

SWITCHYARD_INLINE void store_eight(uint16_t* out, Vector value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), round_eight(value));
}

/** Groups of A that are widened to float32 at once: few enough for the first-level cache. */
constexpr size_t widened_groups = 8;
/** From one row to the next: not a power of two apart, or reading several rows would meet in one bank. */
constexpr size_t widened_stride = widened_groups * group_depth + 24;

/** The scales of eight columns. */
SWITCHYARD_INLINE __m256 load_scales(const Scales& scales, size_t step, size_t column) {
  const size_t at = step * panel_columns + column;
  if (scales.narrow == nullptr) return _mm256_loadu_ps(scales.wide + at);
  const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales.narrow + at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

/** Their zero points. */
SWITCHYARD_INLINE __m256 load_zeros(const Scales& scales, size_t step, size_t column) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales.zeros + step * panel_columns + column));
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
}

/** What has been summed so far for some columns, from one step of scales to the next. */
struct StepEnd {
  const Scales& scales;
  const StepSums& step_sums;
  size_t step, column;
  bool accumulate;
};

/** Takes zero points from the sums of a step, multiplies them by its scales and adds them to `c`. */
template <int Rows, int Vectors>
SWITCHYARD_INLINE void add_step(const __m256 (&sums)[Rows][Vectors], const StepEnd& end, float* c) {
#pragma GCC unroll 8
  for (int vector = 0; vector < Vectors; ++vector) {
    const __m256 scale = load_scales(end.scales, end.step, end.column + vector * 8);
    const bool shifted = end.scales.zeros != nullptr;
    const __m256 zeros = shifted ? load_zeros(end.scales, end.step, end.column + vector * 8) : _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      float* const to = c + row * panel_columns + vector * 8;
      const __m256 before = end.accumulate ? _mm256_loadu_ps(to) : _mm256_setzero_ps();
      __m256 sum = sums[row][vector];
      if (shifted) sum = _mm256_fnmadd_ps(zeros, _mm256_set1_ps(end.step_sums.of(end.step, row)), sum);
      _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, scale, before));
    }
  }
}

/** Lines of the next part of weights, of which some are fetched with every so many pairs of k: in bursts they would queue, and products wait behind them. */
struct Fetch {
  /** Null: none is fetched. */
  const char* line;
  size_t pairs;
};

/** At once. */
template <int Rows>
constexpr size_t lines_fetched = Rows == 2 ? 2 : 1;

/** One row waits for its weights, which come to the nearest cache so far ahead. */
constexpr size_t near_elements = 512;

/** Fetches as many elements, whole lines, as are computed with now, `ahead` of them. */
template <typename Element>
SWITCHYARD_INLINE void fetch_near(const Element* now, size_t elements, size_t ahead) {
#pragma GCC unroll 4
  for (size_t at = 0; at < elements; at += 64 / sizeof(Element)) _mm_prefetch(reinterpret_cast<const char*>(now + ahead + at), _MM_HINT_T0);
}

/** Adds some rows times `Vectors` * 8 columns of BF16 weights to the sums. A BF16 is the high half of its float32. */
template <int Rows, int Vectors>
SWITCHYARD_INLINE void multiply_pairs(const float* a, const uint16_t* b, size_t pairs, Fetch& fetch, __m256 (&sums)[Rows][Vectors]) {
  const __m256i high_half = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  for (size_t next = 0; next < pairs;) {
    if (fetch.line != nullptr) {
#pragma GCC unroll 2
      for (size_t line = 0; line < lines_fetched<Rows>; ++line, fetch.line += 64) _mm_prefetch(fetch.line, _MM_HINT_T2);
    }
    for (const size_t end = std::min(pairs, next + fetch.pairs); next < end; ++next, a += 2, b += panel_columns * 2) {
      if constexpr (Rows == 1) fetch_near(b, panel_columns * 2, near_elements);
      const auto* line = reinterpret_cast<const __m256i*>(b);
      __m256 weights[Vectors];
#pragma GCC unroll 8
      for (int vector = 0; vector < Vectors; ++vector) {
        weights[vector] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(line + vector), 16));
      }
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const __m256 element = _mm256_broadcast_ss(a + row * widened_stride);
#pragma GCC unroll 8
        for (int vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm256_fmadd_ps(element, weights[vector], sums[row][vector]);
      }
      // Reading the line again is cheaper than the registers it would take to keep it; the compiler thinks otherwise.
      asm("" : "+r"(line), "+r"(a));
#pragma GCC unroll 8
      for (int vector = 0; vector < Vectors; ++vector) {
        weights[vector] = _mm256_castsi256_ps(_mm256_and_si256(high_half, _mm256_loadu_si256(line + vector)));
      }
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        const __m256 element = _mm256_broadcast_ss(a + row * widened_stride + 1);
#pragma GCC unroll 8
        for (int vector = 0; vector < Vectors; ++vector) sums[row][vector] = _mm256_fmadd_ps(element, weights[vector], sums[row][vector]);
      }
    }
  }
}

/** Some rows times `Vectors` * 8 columns of the panel. */
template <int Rows, int Vectors>
SWITCHYARD_INLINE void multiply_columns(const float* a, const uint16_t* b, size_t pairs, float* c, bool accumulate, Fetch& fetch) {
  __m256 sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < Vectors; ++vector) {
      sums[row][vector] = accumulate ? _mm256_loadu_ps(c + row * panel_columns + vector * 8) : _mm256_setzero_ps();
    }
  }
  multiply_pairs<Rows, Vectors>(a, b, pairs, fetch, sums);
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 8
    for (int vector = 0; vector < Vectors; ++vector) {
      _mm256_storeu_ps(c + row * panel_columns + vector * 8, sums[row][vector]);
    }
  }
}

/** The same with the sums of each step apart. */
template <int Rows, int Vectors>
SWITCHYARD_INLINE void multiply_scaled(const float* a, const uint16_t* b, size_t pairs, float* c, const StepEnd& end, Fetch& fetch) {
  __m256 sums[Rows][Vectors] = {};
  multiply_pairs<Rows, Vectors>(a, b, pairs, fetch, sums);
  add_step(sums, end, c);
}

/** Groups of a tile, from `first` on, as float32: a row every `widened_stride` elements. */
template <int Rows>
SWITCHYARD_INLINE void widen_rows(const uint16_t* a, size_t first, size_t groups, float* widened) {
  for (size_t line = 0; line < groups * Rows; ++line) {
    const uint16_t* const from = a + (first * Rows + line) * group_depth;
    float* const to = widened + line % Rows * widened_stride + line / Rows * group_depth;
    for (size_t i = 0; i < group_depth; i += 8) {
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
      _mm256_store_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16)));
    }
  }
}

template <int Rows>
SWITCHYARD_TARGET void multiply_rows(const TileProduct& product) {
  // Ten sums, two weights and an element leave the compiler no reason to spill; with few rows the sums are
  // columns, so that weights are read in order.
  constexpr int vectors = Rows == 1 ? 8 : Rows == 2 ? 4 : 2;
  alignas(32) float widened[Rows * widened_stride];
  const size_t step = product.scales.groups;
  const size_t together = step == 0 ? widened_groups : widened_groups / step * step;
  // Of all columns.
  constexpr size_t pairs_per_group = group_depth / 2 * (panel_columns / (vectors * 8));
  Fetch fetch{nullptr, SIZE_MAX};
  if (product.fetch_lines > 0) fetch = {product.fetch, std::max<size_t>(1, pairs_per_group * lines_fetched<Rows> / product.fetch_lines)};
  for (size_t first = 0; first < product.groups; first += together) {
    const size_t groups = std::min(together, product.groups - first);
    widen_rows<Rows>(product.a, first, groups, widened);
    for (size_t column = 0; column < panel_columns; column += vectors * 8) {
      const uint16_t* const b = product.b + first * panel_group_elements + column * 2;
      float* const c = product.c + column;
      if (step == 0) {
        multiply_columns<Rows, vectors>(widened, b, groups * group_depth / 2, c, product.accumulate || first > 0, fetch);
        continue;
      }
      for (size_t group = 0; group < groups; group += step) {
        multiply_scaled<Rows, vectors>(widened + group * group_depth, b + group * panel_group_elements,
                                       std::min(step, groups - group) * group_depth / 2, c,
                                       {product.scales, product.step_sums, (first + group) / step, column, product.accumulate || first + group > 0}, fetch);
      }
    }
  }
}

void multiply(const TileProduct& product) {
  static constexpr void (*by_rows[])(const TileProduct&) = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                                            multiply_rows<4>, multiply_rows<5>};
  by_rows[product.rows - 1](product);
}

#include "experts/cpu/avx2_codes.h"

void multiply_codes(const CodedProduct& product) {
  float* c = product.sums;
  for (const PackedPanel& panel : product.panels) {
    with_code(panel.type, [&](auto code) { multiply_coded<decltype(code)>(product, panel, c); });
    c += product.rows() * panel_columns;
  }
}

void widen(CodeType type, const uint8_t* codes, size_t groups, uint16_t* out) {
  with_code(type, [&](auto code) { widen_coded<decltype(code)>(codes, groups, out); });
}

template <typename Form>
SWITCHYARD_TARGET void gated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto sum = [&](size_t column) SWITCHYARD_TARGET __attribute__((always_inline)) { return Vector::load(c + column) + Vector::load(epilogue.bias + column); };
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    for (size_t column = 0; column < 32; column += 8) {
      store_eight(h + column, Form::of(sum(column), sum(column + 32), epilogue.glu));
    }
  }
}

template <typename Form>
SWITCHYARD_TARGET void ungated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto activated = [&](size_t column) SWITCHYARD_TARGET __attribute__((always_inline)) {
    return Form::of(Vector::load(c + column) + Vector::load(epilogue.bias + column));
  };
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    for (size_t column = 0; column < 32; column += 8) {
      store_eight(h + column, activated(column));
      store_eight(h + rows * group_depth + column, activated(column + 32));
    }
  }
}

SWITCHYARD_TARGET void store_row(const float* c, const float* bias, uint16_t* out, size_t columns) {
  uint16_t whole[panel_columns];
  for (size_t column = 0; column < panel_columns; column += 8) {
    store_eight(whole + column, Vector::load(c + column) + Vector::load(bias + column));
  }
  std::memcpy(out, whole, columns * sizeof *out);
}

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

constexpr TileKernels tile_kernels = {
    .multiply = multiply,
    .multiply_codes = multiply_codes,
    .finish = {gated_rows<Swiglu>, gated_rows<Geglu>, ungated_rows<Gelu>, ungated_rows<Relu2>, ungated_rows<Rounding>},
    .store = store_row,
};

constexpr size_t streamed_rows = 1;

}  // namespace

const Kernels avx2_kernels = {
    .name = "avx2",
    .order = {.columns = panel_columns, .tile_columns = panel_columns, .band_panels = 1, .part_groups = SIZE_MAX, .code_blocks = false},
    .block_rows = 510,
    .row_unit = 1,
    .tile_rows = 5,
    .single_tile_rows = 5,
    .streamed_rows = streamed_rows,
    .supported = supported,
    .multiply = [](const PartProduct& product) { multiply_by_tiles(tile_kernels, streamed_rows, product); },
    .coded_rows = 5,
    .takes_pairs = nullptr,
    .multiply_coded = [](const CodedProduct& product) { multiply_coded_tile(tile_kernels, product); },
    .widen = widen,
};

}  // namespace switchyard::cpu
