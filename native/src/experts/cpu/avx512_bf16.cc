#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"
#include "experts/cpu/tiles.h"

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#ifndef SWITCHYARD_TARGET
#define SWITCHYARD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")))
#endif
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

constexpr int vectors = panel_columns / 16;
constexpr int pairs = group_depth / 2;
/** Up to so many rows the widening of codes in registers is what takes less time. */
constexpr int coded_rows = 16;
/**
 * Whether two panels at once, far apart, take less time than one after the other: memory gives two streams faster than one, where codes of 4 bits
 * for one row just keep up with it. Those of 8 bits keep up anyway, and more rows do not.
 */
constexpr bool takes_pairs(int code_pairs, size_t rows) { return code_pairs == 4 && rows == 1; }
/** Codes come to the nearest cache so many bytes ahead. */
constexpr size_t near_codes = 4096;

#include "experts/cpu/avx512_math.h"
#include "experts/cpu/avx512_codes.h"

/** Takes zero points times the rows' own sums from the sums of a step, of the vectors from `first` on. */
template <int Rows, int Vectors>
SWITCHYARD_INLINE void take_zeros(const Scales& scales, size_t step, int first, const StepSums& step_sums, __m512 (&sums)[Rows][Vectors]) {
  if (scales.zeros == nullptr) return;
#pragma GCC unroll 4
  for (int vector = 0; vector < Vectors; ++vector) {
    const __m512 zeros = load_zeros(scales, step, (first + vector) * 16);
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row) sums[row][vector] = _mm512_fnmadd_ps(zeros, _mm512_set1_ps(step_sums.of(step, row)), sums[row][vector]);
  }
}

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
    if (Scaled) take_zeros(product.scales, step, first, product.step_sums, sums);
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

/** Rows times `Vectors` vectors of the columns of `Panels` panels, from vector `first` on, of codes that are widened in registers. */
template <typename Code, int Rows, int Vectors, int Panels>
SWITCHYARD_TARGET void multiply_coded_pass(const CodedProduct& product, int first) {
  const std::span<const PackedPanel> panels = product.panels;
  const size_t groups = product.groups(), step_groups = panels[0].scales.groups;
  const uint16_t* a = product.a;
  const uint8_t* codes[Panels];
#pragma GCC unroll 2
  for (int panel = 0; panel < Panels; ++panel) codes[panel] = panels[panel].codes + first * 64;
  size_t group = 0;
  for (size_t step = 0; group < groups; ++step) {
    const size_t end = std::min(group + step_groups, groups);
    __m512 sums[Panels][Rows][Vectors];
#pragma GCC unroll 2
    for (int panel = 0; panel < Panels; ++panel) {
#pragma GCC unroll 16
      for (int row = 0; row < Rows; ++row) {
#pragma GCC unroll 4
        for (int vector = 0; vector < Vectors; ++vector) sums[panel][row][vector] = _mm512_setzero_ps();
      }
    }
    for (; group < end; ++group, a += (Rows - 1) * group_depth) {
      // Unrolled, it would read codes in another order, and the hardware would not fetch them in time.
#pragma GCC unroll 1
      for (int run = 0; run < pairs / Code::pairs; ++run, a += Code::pairs * 2) {
#pragma GCC unroll 2
        for (int panel = 0; panel < Panels; ++panel) {
          __m512i words[Vectors][Code::pairs];
#pragma GCC unroll 4
          for (int vector = 0; vector < Vectors; ++vector) {
            const uint8_t* const line = codes[panel] + vector * 64;
            // Two panels at once, and codes of 8 bits that are read in one go, the hardware fetches best.
            if (Panels == 1 && (Code::pairs == 4 || Vectors < vectors)) _mm_prefetch(reinterpret_cast<const char*>(line + near_codes), _MM_HINT_T0);
            Code::widen(_mm512_loadu_si512(line), words[vector]);
          }
#pragma GCC unroll 4
          for (int pair = 0; pair < Code::pairs; ++pair) {
#pragma GCC unroll 16
            for (int row = 0; row < Rows; ++row) {
              int both;
              __builtin_memcpy(&both, a + row * group_depth + pair * 2, sizeof both);
              const __m512bh element = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
              for (int vector = 0; vector < Vectors; ++vector) {
                __m512& sum = sums[panel][row][vector];
                sum = _mm512_dpbf16_ps(sum, element, reinterpret_cast<__m512bh>(words[vector][pair]));
              }
            }
          }
          codes[panel] += vectors * 64;
        }
      }
    }
#pragma GCC unroll 2
    for (int panel = 0; panel < Panels; ++panel) {
      const Scales& scales = panels[panel].scales;
      take_zeros(scales, step, first, product.step_sums, sums[panel]);
#pragma GCC unroll 4
      for (int vector = 0; vector < Vectors; ++vector) {
        const __m512 scale = load_scales(scales, step, (first + vector) * 16);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
          float* const to = product.sums + (panel * Rows + row) * panel_columns + (first + vector) * 16;
          _mm512_storeu_ps(to, _mm512_fmadd_ps(sums[panel][row][vector], scale, step > 0 ? _mm512_loadu_ps(to) : _mm512_setzero_ps()));
        }
      }
    }
  }
}

/** As many columns at once as leave registers for what they are multiplied with. */
template <typename Code, int Rows>
void multiply_coded_rows(const CodedProduct& product) {
  constexpr auto fit = [](int columns) { return columns * (Rows + Code::pairs) <= 30; };
  constexpr int together = fit(4) ? 4 : fit(2) ? 2 : 1;
  if constexpr (takes_pairs(Code::pairs, Rows)) {
    if (product.panels.size() == 2) return multiply_coded_pass<Code, Rows, vectors, 2>(product, 0);
  }
  for (int first = 0; first < vectors; first += together) multiply_coded_pass<Code, Rows, together, 1>(product, first);
}

template <typename Code, int... Rows>
void multiply_coded(const CodedProduct& product, std::integer_sequence<int, Rows...>) {
  static constexpr void (*by_rows[])(const CodedProduct&) = {multiply_coded_rows<Code, Rows + 1>...};
  by_rows[product.rows() - 1](product);
}

void multiply_codes(const CodedProduct& product) {
  with_code(product.panels[0].type, [&](auto code) { multiply_coded<decltype(code)>(product, std::make_integer_sequence<int, coded_rows>()); });
}

template <typename Form>
SWITCHYARD_TARGET void gated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto sum = [&](size_t column) SWITCHYARD_TARGET __attribute__((always_inline)) { return Vector::load(c + column) + Vector::load(epilogue.bias + column); };
  for (size_t row = 0; row < rows; ++row, c += panel_columns, h += group_depth) {
    const Vector low = Form::of(sum(0), sum(32), epilogue.glu);
    const Vector high = Form::of(sum(16), sum(48), epilogue.glu);
    _mm512_storeu_si512(h, round_pair(low, high));
  }
}

template <typename Form>
SWITCHYARD_TARGET void ungated_rows(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  const auto activated = [&](size_t column) SWITCHYARD_TARGET __attribute__((always_inline)) {
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

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}

constexpr TileKernels tile_kernels = {
    .multiply = multiply,
    .multiply_codes = multiply_codes,
    .finish = {gated_rows<Swiglu>, gated_rows<Geglu>, ungated_rows<Gelu>, ungated_rows<Relu2>, ungated_rows<Rounding>},
    .store = store_row,
};

constexpr size_t streamed_rows = 6;

}  // namespace

const Kernels avx512_bf16_kernels = {
    .name = "avx512-bf16",
    .order = {.columns = panel_columns, .tile_columns = panel_columns, .band_panels = 1, .part_groups = SIZE_MAX, .code_blocks = true},
    .block_rows = 510,
    .row_unit = 1,
    .tile_rows = 14,
    .single_tile_rows = 16,
    .streamed_rows = streamed_rows,
    .supported = supported,
    .multiply = [](const PartProduct& product) { multiply_by_tiles(tile_kernels, streamed_rows, product); },
    .coded_rows = coded_rows,
    .takes_pairs =
        [](CodeType type, size_t rows) {
          bool takes = false;
          with_code(type, [&](auto code) { takes = takes_pairs(decltype(code)::pairs, rows); });
          return takes;
        },
    .multiply_coded = [](const CodedProduct& product) { multiply_coded_tile(tile_kernels, product); },
    .widen = widen_groups<panel_columns, panel_columns>,
};

}  // namespace switchyard::cpu
