#include <immintrin.h>

#include <algorithm>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/tiles.h"

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#ifndef SWITCHYARD_TARGET
#define SWITCHYARD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#endif
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

constexpr int vectors = panel_columns / 16;
constexpr int pairs = group_depth / 2;

#include "experts/cpu/avx512_math.h"

/**
 * Rows times `Vectors` vectors of a panel's columns, from vector `first` on: one pass of several over the panel.
 * `FetchLines` are fetched with every four pairs of k. They are a constant: a loop that counts them costs more than it fetches.
 */
template <int Rows, int Vectors, int FetchLines, bool Scaled>
SWITCHYARD_TARGET void multiply_pass(const TileProduct& product, int first) {
  constexpr int fours = pairs / 4;
  float* const c = product.c + first * 16;
  const uint16_t* a = product.a;
  const uint16_t* b = product.b + first * 32;
  // Every pass fetches its share, one after the other.
  const char* fetch = product.fetch + first / Vectors * product.groups * fours * FetchLines * 64;
  const bool last = first + Vectors == vectors;
  const uint16_t* next_a = product.next_a;
  size_t group = 0;
  // Without scales there is one step, which goes on with the sums so far.
  for (size_t step = 0; group < product.groups; ++step) {
    const size_t end = Scaled ? std::min(group + product.scales.groups, product.groups) : product.groups;
    const bool goes_on = product.accumulate || step > 0;
    __m512 sums[Rows][Vectors];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
      for (int vector = 0; vector < Vectors; ++vector) {
        sums[row][vector] = !Scaled && goes_on ? _mm512_loadu_ps(c + row * panel_columns + vector * 16) : _mm512_setzero_ps();
      }
    }
    for (; group < end; ++group, a += (Rows - 1) * group_depth) {
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
#pragma GCC unroll 4
    for (int vector = 0; vector < Vectors; ++vector) {
      const __m512 scale = Scaled ? load_scales(product.scales, step, (first + vector) * 16) : _mm512_setzero_ps();
#pragma GCC unroll 16
      for (int row = 0; row < Rows; ++row) {
        float* const to = c + row * panel_columns + vector * 16;
        const __m512 before = Scaled && goes_on ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
        _mm512_storeu_ps(to, Scaled ? _mm512_fmadd_ps(sums[row][vector], scale, before) : sums[row][vector]);
      }
    }
  }
}

template <int Rows, int Vectors, int FetchLines, bool Scaled>
void multiply_passes(const TileProduct& product) {
  for (int first = 0; first < vectors; first += Vectors) multiply_pass<Rows, Vectors, FetchLines, Scaled>(product, first);
}

/** As many columns at once as leave registers for their weights and one element beside the sums. */
template <int Rows>
void multiply_rows(const TileProduct& product) {
  constexpr int together = Rows <= 6 ? 4 : Rows <= 14 ? 2 : 1;
  if (product.scales.groups != 0) return multiply_passes<Rows, together, 0, true>(product);
  switch (product.fetch_lines * together / pairs) {
    case 0: return multiply_passes<Rows, together, 0, false>(product);
    case 1: return multiply_passes<Rows, together, 1, false>(product);
    case 2: return multiply_passes<Rows, together, 2, false>(product);
    case 4: return multiply_passes<Rows, together, 4, false>(product);
    default: return multiply_passes<Rows, together, 8, false>(product);
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

/** What codes of 16 columns and two k count, in BF16, as the kernels read them. */
struct E4m3Line {
  static constexpr size_t bytes = 32;
  /** Those of no exponent, by their three bits. */
  static constexpr uint16_t subnormal[32] = {0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3820, 0x3840, 0x3860};
  SWITCHYARD_INLINE static __m512i words_of(int value) { return _mm512_set1_epi16(static_cast<short>(value)); }
  SWITCHYARD_INLINE static __m512i widen(const uint8_t* codes) {
    const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
    // In units the exponent is 112 more, which has none of its four bits.
    const __m512i normal = _mm512_or_si512(_mm512_and_si512(_mm512_slli_epi16(words, 4), words_of(0x07f0)), words_of(0x3800));
    const __mmask32 below = _mm512_testn_epi16_mask(words, words_of(0x0078));
    const __m512i size = _mm512_mask_permutexvar_epi16(normal, below, words, _mm512_loadu_si512(subnormal));
    return _mm512_or_si512(_mm512_and_si512(words, words_of(0x8000)), size);
  }
};

struct I8Line {
  static constexpr size_t bytes = 32;
  SWITCHYARD_INLINE static __m512i widen(const uint8_t* codes) {
    const auto* const from = reinterpret_cast<const __m128i*>(codes);
    const Vector low{_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from)))};
    return round_pair(low, {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from + 1)))});
  }
};

/** Values by a table, of which there are two: a fifth bit of a code does not matter. */
template <typename Values>
struct FourBitsLine {
  static constexpr size_t bytes = 16;
  SWITCHYARD_INLINE static __m512i widen(const uint8_t* codes) {
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm512_permutexvar_epi16(_mm512_or_si512(both, _mm512_slli_epi32(both, 12)), _mm512_loadu_si512(Values::bf16));
  }
};

/** In units of 2^-16. */
struct E2m1Values {
  static constexpr uint16_t bf16[32] = {0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3840, 0x3880, 0x38c0, 0x8000, 0xb700, 0xb780,
                                        0xb7c0, 0xb800, 0xb840, 0xb880, 0xb8c0, 0x0000, 0x3700, 0x3780, 0x37c0, 0x3800, 0x3840,
                                        0x3880, 0x38c0, 0x8000, 0xb700, 0xb780, 0xb7c0, 0xb800, 0xb840, 0xb880, 0xb8c0};
};

/** -8 to 7. */
struct U4Values {
  static constexpr uint16_t bf16[32] = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000,
                                        0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040,
                                        0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
};

template <typename Line>
SWITCHYARD_TARGET void widen_lines(const uint8_t* codes, size_t lines, uint16_t* out) {
#pragma GCC unroll 4
  for (size_t line = 0; line < lines; ++line, codes += Line::bytes, out += line_codes) _mm512_storeu_si512(out, Line::widen(codes));
}

void widen(CodeType type, const uint8_t* codes, size_t lines, uint16_t* out) {
  switch (type) {
    case CodeType::f8_e4m3: return widen_lines<E4m3Line>(codes, lines, out);
    case CodeType::i8: return widen_lines<I8Line>(codes, lines, out);
    case CodeType::u4: return widen_lines<FourBitsLine<U4Values>>(codes, lines, out);
    case CodeType::f4_e2m1: return widen_lines<FourBitsLine<E2m1Values>>(codes, lines, out);
  }
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

constexpr TileKernels tile_kernels = {
    .multiply = multiply,
    .multiply_codes = nullptr,
    .finish = {gated_rows<Swiglu>, gated_rows<Geglu>, ungated_rows<Gelu>, ungated_rows<Relu2>, ungated_rows<Rounding>},
    .store = store_row,
};

constexpr size_t streamed_rows = 6;

}  // namespace

const Kernels avx512_bf16_kernels = {
    .name = "avx512-bf16",
    .order = {.columns = panel_columns, .tile_columns = panel_columns, .band_panels = 1, .part_groups = SIZE_MAX},
    .block_rows = 510,
    .row_unit = 1,
    .tile_rows = 14,
    .single_tile_rows = 16,
    .streamed_rows = streamed_rows,
    .supported = supported,
    .multiply = [](const PartProduct& product) { multiply_by_tiles(tile_kernels, streamed_rows, product); },
    .coded_rows = 0,
    .widen = widen,
};

}  // namespace switchyard::cpu
