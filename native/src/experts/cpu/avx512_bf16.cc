#include <immintrin.h>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define SWITCHYARD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

constexpr int vectors = panel_columns / 16;
constexpr int pairs = group_depth / 2;

struct Vector {
  __m512 lanes;

  SWITCHYARD_INLINE static Vector set(float value) { return {_mm512_set1_ps(value)}; }
  SWITCHYARD_INLINE static Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  // The instruction gives its second operand where one is NaN: NaN in `b` stays.
  SWITCHYARD_INLINE static Vector minimum(Vector a, Vector b) { return {_mm512_min_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE static Vector maximum(Vector a, Vector b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE static Vector round(Vector a) { return {_mm512_roundscale_ps(a.lanes, 0x08)}; }
  SWITCHYARD_INLINE static Vector absolute(Vector a) { return {_mm512_abs_ps(a.lanes)}; }
  SWITCHYARD_INLINE static Vector multiply_add(Vector a, Vector b, Vector c) {
    return {_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes)};
  }
  /** a * 2^n */
  SWITCHYARD_INLINE static Vector scale(Vector a, Vector n) { return {_mm512_scalef_ps(a.lanes, n.lanes)}; }
  SWITCHYARD_INLINE static Vector select_negative(Vector sign, Vector negative, Vector otherwise) {
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign.lanes)), otherwise.lanes, negative.lanes)};
  }
  SWITCHYARD_INLINE friend Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.lanes, b.lanes)}; }
  SWITCHYARD_INLINE friend Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.lanes, b.lanes)}; }
};

#include "experts/cpu/activation_math.h"

SWITCHYARD_INLINE __m512i round_pair(Vector low, Vector high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.lanes, low.lanes));
}

/**
 * Rows times `Vectors` vectors of a panel's columns, from vector `first` on: one pass of several over the panel.
 * `FetchLines` are fetched with every four pairs of k. They are a constant: a loop that counts them costs more than it fetches.
 */
template <int Rows, int Vectors, int FetchLines>
SWITCHYARD_TARGET void multiply_pass(const TileProduct& product, int first) {
  constexpr int fours = pairs / 4;
  __m512 sums[Rows][Vectors];
  float* const c = product.c + first * 16;
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < Vectors; ++vector) {
      sums[row][vector] = product.accumulate ? _mm512_loadu_ps(c + row * panel_columns + vector * 16) : _mm512_setzero_ps();
    }
  }
  const uint16_t* a = product.a;
  const uint16_t* b = product.b + first * 32;
  // Every pass fetches its share, one after the other.
  const char* fetch = reinterpret_cast<const char*>(product.fetch) + first / Vectors * product.groups * fours * FetchLines * 64;
  const bool last = first + Vectors == vectors;
  const uint16_t* next_a = product.next_a;
  for (size_t group = 0; group < product.groups; ++group, a += (Rows - 1) * group_depth) {
    if (last) {
#pragma GCC unroll 16
      for (int row = 0; row < Rows; ++row) _mm_prefetch(reinterpret_cast<const char*>(next_a + row * group_depth), _MM_HINT_T0);
      next_a += Rows * group_depth;
    }
    for (int four = 0; four < fours; ++four, a += 8, b += 4 * 2 * panel_columns) {
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; ++pair) {
#pragma GCC unroll 2
        for (int line = pair * FetchLines / 4; line < (pair + 1) * FetchLines / 4; ++line) _mm_prefetch(fetch + line * 64, _MM_HINT_T2);
        __m512bh weights[Vectors];
#pragma GCC unroll 4
        for (int vector = 0; vector < Vectors; ++vector) {
          weights[vector] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + (pair * panel_columns + vector * 16) * 2));
        }
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          int both;
          __builtin_memcpy(&both, a + row * group_depth + pair * 2, sizeof both);
          const __m512bh element = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
          for (int vector = 0; vector < Vectors; ++vector) {
            sums[row][vector] = _mm512_dpbf16_ps(sums[row][vector], element, weights[vector]);
          }
        }
      }
      fetch += FetchLines * 64;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < Vectors; ++vector) {
      _mm512_storeu_ps(c + row * panel_columns + vector * 16, sums[row][vector]);
    }
  }
}

template <int Rows, int Vectors, int FetchLines>
void multiply_passes(const TileProduct& product) {
  for (int first = 0; first < vectors; first += Vectors) multiply_pass<Rows, Vectors, FetchLines>(product, first);
}

/** As many columns at once as leave registers for their weights and one element beside the sums. */
template <int Rows>
void multiply_rows(const TileProduct& product) {
  constexpr int together = Rows <= 6 ? 4 : Rows <= 14 ? 2 : 1;
  switch (product.fetch_lines * together / pairs) {
    case 0: return multiply_passes<Rows, together, 0>(product);
    case 1: return multiply_passes<Rows, together, 1>(product);
    case 2: return multiply_passes<Rows, together, 2>(product);
    case 4: return multiply_passes<Rows, together, 4>(product);
    default: return multiply_passes<Rows, together, 8>(product);
  }
}

void multiply(const TileProduct& product) {
  static constexpr void (*by_rows[])(const TileProduct&) = {
      multiply_rows<1>,  multiply_rows<2>,  multiply_rows<3>,  multiply_rows<4>,  multiply_rows<5>,  multiply_rows<6>,
      multiply_rows<7>,  multiply_rows<8>,  multiply_rows<9>,  multiply_rows<10>, multiply_rows<11>, multiply_rows<12>,
      multiply_rows<13>, multiply_rows<14>, multiply_rows<15>, multiply_rows<16>};
  by_rows[product.rows - 1](product);
}

template <typename Form>
SWITCHYARD_TARGET void gated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto sum = [&](size_t column) SWITCHYARD_TARGET { return Vector::load(c + column) + Vector::load(epilogue.bias + column); };
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    const Vector low = Form::of(sum(0), sum(32), epilogue.glu);
    const Vector high = Form::of(sum(16), sum(48), epilogue.glu);
    _mm512_storeu_si512(h, round_pair(low, high));
  }
}

template <typename Form>
SWITCHYARD_TARGET void ungated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto activated = [&](size_t column) SWITCHYARD_TARGET {
    return Form::of(Vector::load(c + column) + Vector::load(epilogue.bias + column));
  };
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    _mm512_storeu_si512(h, round_pair(activated(0), activated(16)));
    _mm512_storeu_si512(h + rows * group_depth, round_pair(activated(32), activated(48)));
  }
}

SWITCHYARD_TARGET void store_row(const float* c, const float* bias, uint16_t* out, size_t columns) {
  for (size_t first = 0; first < columns; first += 32) {
    const size_t count = columns - first < 32 ? columns - first : 32;
    const __mmask32 mask = count == 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
    const Vector low = Vector::load(c + first) + Vector::load(bias + first);
    const Vector high = Vector::load(c + first + 16) + Vector::load(bias + first + 16);
    _mm512_mask_storeu_epi16(out + first, mask, round_pair(low, high));
  }
}

/** The scales of 64 columns, each twice, as the elements of two neighbouring k take them. */
struct TwiceScales {
  __m512 lanes[8];
};

SWITCHYARD_INLINE TwiceScales load_scales(const PackedPanel& panel, size_t group) {
  const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const size_t first = group / panel.groups_per_scale * panel_columns;
  TwiceScales scales;
#pragma GCC unroll 4
  for (int vector = 0; vector < vectors; ++vector) {
    const size_t at = first + vector * 16;
    const __m512 sixteen =
        panel.narrow_scales != nullptr
            ? _mm512_castsi512_ps(_mm512_slli_epi32(
                  _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.narrow_scales + at))), 16))
            : _mm512_loadu_ps(panel.wide_scales + at);
    scales.lanes[vector * 2] = _mm512_permutexvar_ps(low, sixteen);
    scales.lanes[vector * 2 + 1] = _mm512_permutexvar_ps(high, sixteen);
  }
  return scales;
}

/** 16 columns of two k from one line of codes, as floats in two halves. */
struct E4m3Line {
  static constexpr size_t bytes = 32;
  /** A half float of the same bits has an exponent that is less by 8. */
  static constexpr float factor = 256.0f;
  SWITCHYARD_INLINE static void widen(const uint8_t* codes, __m512& low, __m512& high) {
    const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    const __m512i halves = _mm512_and_si512(_mm512_slli_epi16(words, 7), _mm512_set1_epi16(static_cast<short>(0xbf80)));
    low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
  }
};

struct I8Line {
  static constexpr size_t bytes = 32;
  static constexpr float factor = 1.0f;
  SWITCHYARD_INLINE static void widen(const uint8_t* codes, __m512& low, __m512& high) {
    const auto* const from = reinterpret_cast<const __m128i*>(codes);
    low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)));
    high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from + 1)));
  }
};

/** The words of 16 bytes of two codes each: codes in their lowest bits, the first one's above it what does not matter. */
SWITCHYARD_INLINE __m512i spread(const uint8_t* codes) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
}

struct U4Line {
  static constexpr size_t bytes = 16;
  static constexpr float factor = 1.0f;
  SWITCHYARD_INLINE static void widen(const uint8_t* codes, __m512& low, __m512& high) {
    const __m512i words = _mm512_sub_epi16(_mm512_and_si512(spread(codes), _mm512_set1_epi16(15)), _mm512_set1_epi16(8));
    low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(words)));
    high = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(words, 1)));
  }
};

template <typename Line>
SWITCHYARD_TARGET void widen_scaled(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out) {
  const uint8_t* codes = panel.codes + first_group * pairs * vectors * Line::bytes;
  for (size_t group = first_group; group < first_group + groups; ++group) {
    TwiceScales scales = load_scales(panel, group);
    for (__m512& lanes : scales.lanes) lanes = _mm512_mul_ps(lanes, _mm512_set1_ps(Line::factor));
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 4
      for (int vector = 0; vector < vectors; ++vector, codes += Line::bytes, out += 32) {
        __m512 low, high;
        Line::widen(codes, low, high);
        const Vector first{_mm512_mul_ps(low, scales.lanes[vector * 2])};
        const Vector second{_mm512_mul_ps(high, scales.lanes[vector * 2 + 1])};
        _mm512_storeu_si512(out, round_pair(first, second));
      }
    }
  }
}

/** Values by a table, whose exponents the scales, powers of two, are added to: but for zero. */
SWITCHYARD_TARGET void widen_e2m1(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out) {
  // 0, 0.5, 1, 1.5, 2, 3, 4, 6 in BF16, the same below zero, and all of them again: a fifth bit of a code does not matter.
  static const uint16_t values[32] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80,
                                      0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0, 0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
                                      0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
  const __m512i table = _mm512_loadu_si512(values);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  const uint8_t* codes = panel.codes + first_group * pairs * panel_columns;
  for (size_t group = first_group; group < first_group + groups; ++group) {
    __m512i exponents[vectors];
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) {
      const size_t at = group / panel.groups_per_scale * panel_columns + vector * 16;
      const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel.narrow_scales + at));
      const __m512i once = _mm512_cvtepu16_epi32(_mm256_sub_epi16(narrow, _mm256_set1_epi16(0x3f80)));
      exponents[vector] = _mm512_or_si512(once, _mm512_slli_epi32(once, 16));
    }
    for (int pair = 0; pair < pairs; ++pair) {
#pragma GCC unroll 4
      for (int vector = 0; vector < vectors; ++vector, codes += 16, out += 32) {
        const __m512i found = _mm512_permutexvar_epi16(spread(codes), table);
        const __mmask32 not_zero = _mm512_test_epi16_mask(found, magnitude);
        _mm512_storeu_si512(out, _mm512_mask_add_epi16(found, not_zero, found, exponents[vector]));
      }
    }
  }
}

void widen(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out) {
  switch (panel.type) {
    case CodeType::f8_e4m3: return widen_scaled<E4m3Line>(panel, first_group, groups, out);
    case CodeType::i8: return widen_scaled<I8Line>(panel, first_group, groups, out);
    case CodeType::u4: return widen_scaled<U4Line>(panel, first_group, groups, out);
    case CodeType::f4_e2m1: return widen_e2m1(panel, first_group, groups, out);
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

}  // namespace

const Kernels avx512_bf16_kernels = {
    .name = "avx512-bf16",
    .tile_rows = 14,
    .single_tile_rows = 16,
    .streamed_rows = 6,
    .supported = supported,
    .multiply = multiply,
    .widen = widen,
    .activate = {gated_rows<Swiglu>, gated_rows<Geglu>, ungated_rows<Gelu>, ungated_rows<Relu2>},
    .store = store_row,
};

}  // namespace switchyard::cpu
