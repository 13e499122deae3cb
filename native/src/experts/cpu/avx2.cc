#include <immintrin.h>

#include <cstring>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"

#define SWITCHYARD_TARGET __attribute__((target("avx2,fma")))
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

constexpr int pairs = group_depth / 2;

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

/** Rows of a tile times 16 columns of the panel: a BF16 is the high half of its float32. */
template <int Rows>
SWITCHYARD_TARGET void multiply_columns(const TileProduct& product, size_t column) {
  __m256 sums[Rows][2];
  float* c = product.c + column;
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
    sums[row][0] = product.accumulate ? _mm256_loadu_ps(c + row * panel_columns) : _mm256_setzero_ps();
    sums[row][1] = product.accumulate ? _mm256_loadu_ps(c + row * panel_columns + 8) : _mm256_setzero_ps();
  }
  const __m256i high_half = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  const uint16_t* a = product.a;
  const uint16_t* b = product.b + column * 2;
  for (size_t group = 0; group < product.groups; ++group) {
#pragma GCC unroll 2
    for (int pair = 0; pair < pairs; ++pair) {
      const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + pair * panel_columns * 2));
      const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + pair * panel_columns * 2 + 16));
      __m256 first_weights = _mm256_castsi256_ps(_mm256_slli_epi32(first, 16));
      __m256 second_weights = _mm256_castsi256_ps(_mm256_slli_epi32(second, 16));
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        int both;
        std::memcpy(&both, a + row * group_depth + pair * 2, sizeof both);
        const __m256 element = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi32(both), 16));
        sums[row][0] = _mm256_fmadd_ps(element, first_weights, sums[row][0]);
        sums[row][1] = _mm256_fmadd_ps(element, second_weights, sums[row][1]);
      }
      first_weights = _mm256_castsi256_ps(_mm256_and_si256(first, high_half));
      second_weights = _mm256_castsi256_ps(_mm256_and_si256(second, high_half));
#pragma GCC unroll 8
      for (int row = 0; row < Rows; ++row) {
        int both;
        std::memcpy(&both, a + row * group_depth + pair * 2, sizeof both);
        const __m256 element = _mm256_castsi256_ps(_mm256_and_si256(_mm256_set1_epi32(both), high_half));
        sums[row][0] = _mm256_fmadd_ps(element, first_weights, sums[row][0]);
        sums[row][1] = _mm256_fmadd_ps(element, second_weights, sums[row][1]);
      }
    }
    a += Rows * group_depth;
    b += panel_group_elements;
  }
#pragma GCC unroll 8
  for (int row = 0; row < Rows; ++row) {
    _mm256_storeu_ps(c + row * panel_columns, sums[row][0]);
    _mm256_storeu_ps(c + row * panel_columns + 8, sums[row][1]);
  }
}

SWITCHYARD_TARGET void multiply(const TileProduct& product) {
  static constexpr void (*by_rows[])(const TileProduct&, size_t) = {multiply_columns<1>, multiply_columns<2>, multiply_columns<3>,
                                                                    multiply_columns<4>, multiply_columns<5>};
  const size_t lines = product.fetch_lines * 4 * product.groups;
  const char* fetch = reinterpret_cast<const char*>(product.fetch);
  for (size_t line = 0; line < lines; ++line) _mm_prefetch(fetch + line * 64, _MM_HINT_T1);
  for (size_t column = 0; column < panel_columns; column += 16) by_rows[product.rows - 1](product, column);
}

SWITCHYARD_TARGET void swiglu_rows(const float* c, size_t rows, uint16_t* h) {
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    for (size_t column = 0; column < 32; column += 8) {
      store_eight(h + column, silu(Vector::load(c + column)) * Vector::load(c + column + 32));
    }
  }
}

SWITCHYARD_TARGET void gelu_rows(const float* c, size_t rows, uint16_t* h) {
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    for (size_t column = 0; column < 32; column += 8) {
      store_eight(h + column, gelu(Vector::load(c + column)));
      store_eight(h + rows * group_depth + column, gelu(Vector::load(c + column + 32)));
    }
  }
}

SWITCHYARD_TARGET void store_row(const float* c, uint16_t* out, size_t columns) {
  uint16_t whole[panel_columns];
  for (size_t column = 0; column < panel_columns; column += 8) store_eight(whole + column, Vector::load(c + column));
  std::memcpy(out, whole, columns * sizeof *out);
}

bool supported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Kernels avx2_kernels = {
    .name = "avx2",
    .tile_rows = 5,
    .supported = supported,
    .multiply = multiply,
    .swiglu = swiglu_rows,
    .gelu = gelu_rows,
    .store = store_row,
};

}  // namespace switchyard::cpu
