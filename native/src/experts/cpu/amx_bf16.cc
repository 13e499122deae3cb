#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <optional>
#include <type_traits>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// Every CPU with AMX has AVX-512-BF16 and the fetching of lines to write too.
#ifndef SWITCHYARD_TARGET
#define SWITCHYARD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,amx-tile,amx-bf16,prfchw")))
#endif
#define SWITCHYARD_INLINE SWITCHYARD_TARGET __attribute__((always_inline)) inline

namespace switchyard::cpu {
namespace {

#include "experts/cpu/avx512_math.h"
#include "experts/cpu/avx512_codes.h"

#include "experts/cpu/amx_finish.h"

constexpr long row_bytes = group_depth * sizeof(uint16_t);
constexpr long sums_row_bytes = register_columns * sizeof(float);
/** Elements that a register holds of rows or of weights: 1 KiB that lies together. */
constexpr size_t register_elements = register_rows * group_depth;
/** Of two registers: of two tiles' rows, or of a panel, per group. */
constexpr size_t pair_elements = 2 * register_elements;
constexpr size_t pair_lines = pair_elements * sizeof(uint16_t) / 64;
constexpr size_t line_bytes = 64;
constexpr size_t line_elements = 32;
constexpr size_t line_floats = 16;
/** So far ahead weights come to the nearest cache where few rows use them. */
constexpr size_t near_elements = pair_elements / 2;

/** What ldtilecfg reads: eight registers of 16 rows of 64 bytes. Rows that a product lacks are zeros. */
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

SWITCHYARD_TARGET void configure() {
  const TileConfiguration configuration;
  // The intrinsic tells the compiler of the first bytes only; all of them must be in memory.
  asm volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
}

/** Of one product: tiles of two registers of rows. An odd number of registers leaves one tile of one, the first. */
struct Shape {
  size_t groups;
  /** Elements of a panel's part. */
  size_t panel_elements;
  /** Floats of the sums of a panel. */
  size_t panel_sums;
  size_t first_pair, end_pair;
  bool has_single;

  explicit Shape(const PartProduct& product)
      : groups(product.groups()),
        panel_elements(groups * pair_elements),
        panel_sums(product.rows() * pair_columns),
        first_pair(product.first_tile),
        end_pair(product.end_tile),
        has_single(product.order.tiles.size(product.first_tile) == register_rows) {
    if (has_single) ++first_pair;
  }
  size_t pairs() const { return end_pair - first_pair; }
};

SWITCHYARD_INLINE void fetch_far(const void* line) { _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T1); }
SWITCHYARD_INLINE void fetch_near(const void* line) { _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0); }

/**
 * Fetches what is needed next, a few lines in each of the four gaps between the products of a group: in bursts they would queue.
 * WeightLines a group of the next panel's part go to the second-level cache, as streams some way apart: none, or 2, 4, 8 or 16.
 */
template <size_t WeightLines>
struct Fetches {
  /** Of the next panel's part. */
  const uint16_t* weights = nullptr;
  /** Elements of a quarter of it. */
  size_t quarter = 0;
  /** Rows of the next part of k, or null: few rows stay cached anyway. */
  const uint16_t* rows = nullptr;
  /** Of the four gaps those in which a line of rows is fetched: two where all panels of a band share the fetching, more where fewer do. */
  size_t row_gaps = 2;
  /** Sums of the next tile; they are written in all parts but the last. */
  const float* sums = nullptr;
  bool sums_written = false;

  template <size_t Gap>
  SWITCHYARD_INLINE void weights_in() {
    if constexpr (WeightLines >= 4) {
      constexpr size_t lines = WeightLines / 4;
#pragma GCC unroll 4
      for (size_t line = 0; line < lines; ++line) fetch_far(weights + Gap * quarter + line * line_elements);
      if constexpr (Gap == 3) weights += lines * line_elements;
    } else if constexpr (WeightLines == 2 && Gap % 2 == 1) {
      fetch_far(weights + Gap / 2 * 2 * quarter);
      if constexpr (Gap == 3) weights += line_elements;
    }
  }
  template <size_t Gap>
  SWITCHYARD_INLINE void rows_in() {
    if (rows == nullptr || (Gap % 2 != 0 && row_gaps == 2)) return;
    fetch_far(rows);
    rows += line_elements;
  }
  SWITCHYARD_INLINE void sums_in() {
    if (sums_written) __builtin_prefetch(sums, 1, 3);
    else fetch_near(sums);
    sums += line_floats;
  }
};

/**
 * Stores what a register holds of the tile before, unless that has one register of rows and this is of the second, and begins the next sums with
 * zeros, or with what has been summed so far.
 */
#define SWITCHYARD_HAND_OVER(number)                                                                                      \
  if ((number) < 2 || before_rows > register_rows) _tile_stored(number, before + (number) * register_sums, sums_row_bytes); \
  if (first_part) {                                                                                                       \
    _tile_zero(number);                                                                                                   \
  } else {                                                                                                                \
    _tile_stream_loadd(number, sums + (number) * register_sums, sums_row_bytes);                                          \
  }

/**
 * Tiles of two registers of rows times all panels, and the tile of one, if there is one. Registers 0 to 3 hold sums [register of rows][register of
 * columns], 4 and 5 rows, 6 and 7 weights. A panel's part stays in the nearest cache while tile after tile uses it, that of one register last; rows are
 * read past that cache, or they would drive it out. The sums of one tile are stored, and its rows finished, between the products of the next.
 * WeightLines: see Fetches; 0: there is one tile of two registers, for which weights are fetched to the nearest cache instead.
 */
template <typename Ending, size_t WeightLines>
SWITCHYARD_TARGET void multiply_pairs(const PartProduct& product, const Shape& shape) {
  constexpr size_t fetching_pairs_min = 5;
  alignas(4096) float finished[2][pair_sums];
  Ending ending(product);
  const bool first_part = product.is_first();
  const size_t next_part = product.is_last() ? 0 : product.part + 1;
  Fetches<WeightLines> fetches{.quarter = shape.panel_elements / 4, .row_gaps = product.panels > 8 ? 2u : 4u, .sums_written = !Ending::finishes};
  if (shape.pairs() >= fetching_pairs_min) fetches.rows = product.a + product.order.element(next_part, shape.first_pair);
  const uint16_t* const pairs_a = product.a + product.order.element(product.part, shape.first_pair);
  const uint16_t* const single_a = product.a + product.order.element(product.part, product.first_tile);
  // Of the tile before: where its sums go, its rows, and how many of them are finished. At first there is none.
  float* before = finished[0];
  size_t before_rows = 2 * register_rows, row = before_rows;
  const auto finish_row = [&]() SWITCHYARD_TARGET __attribute__((always_inline)) {
    if (!Ending::finishes || row == before_rows) return;
    ending.row(before, row);
    ++row;
  };
  const auto end_tile = [&](size_t panel, size_t tile, size_t rows, float* sums) SWITCHYARD_TARGET __attribute__((always_inline)) {
    before_rows = rows;
    if constexpr (Ending::finishes) {
      ending.at(product.first_panel + panel, tile);
      before = before == finished[0] ? finished[1] : finished[0];
      row = 0;
    } else {
      before = sums;
      row = rows;
    }
  };
  for (size_t panel = 0; panel < product.panels; ++panel) {
    const uint16_t* const panel_b = product.b + panel * shape.panel_elements;
    const uint16_t* a = pairs_a;
    float* const panel_sums = product.sums + panel * shape.panel_sums;
    float* sums = panel_sums + (shape.has_single ? 2 * register_sums : 0);
    const uint16_t* const next_b = panel + 1 < product.panels ? panel_b + shape.panel_elements : static_cast<const uint16_t*>(product.next);
    fetches.weights = next_b == nullptr ? panel_b : next_b;
    for (size_t pair = shape.first_pair; pair < shape.end_pair; ++pair, sums += pair_sums) {
      const uint16_t* b = panel_b;
      _tile_stream_loadd(4, a, row_bytes);
      _tile_loadd(6, b, row_bytes);
      SWITCHYARD_HAND_OVER(0)
      _tile_dpbf16ps(0, 4, 6);
      fetches.template weights_in<0>();
      fetches.template rows_in<0>();
      _tile_loadd(7, b + register_elements, row_bytes);
      SWITCHYARD_HAND_OVER(1)
      _tile_dpbf16ps(1, 4, 7);
      fetches.template weights_in<1>();
      fetches.template rows_in<1>();
      _tile_stream_loadd(5, a + register_elements, row_bytes);
      SWITCHYARD_HAND_OVER(2)
      _tile_dpbf16ps(2, 5, 6);
      fetches.template weights_in<2>();
      fetches.template rows_in<2>();
      SWITCHYARD_HAND_OVER(3)
      _tile_dpbf16ps(3, 5, 7);
      fetches.template weights_in<3>();
      fetches.template rows_in<3>();
      a += pair_elements;
      b += pair_elements;
      fetches.sums = pair + 1 < shape.end_pair ? sums + pair_sums : panel_sums + (shape.has_single ? 0 : shape.panel_sums);
      for (size_t group = 1; group < shape.groups; ++group, a += pair_elements, b += pair_elements) {
        _tile_stream_loadd(4, a, row_bytes);
        _tile_loadd(6, b, row_bytes);
        if constexpr (WeightLines == 0) {
#pragma GCC unroll 32
          for (size_t line = 0; line < pair_lines; ++line) fetch_near(b + near_elements + line * line_elements);
        }
        fetches.template weights_in<0>();
        fetches.template rows_in<0>();
        fetches.sums_in();
        finish_row();
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + register_elements, row_bytes);
        fetches.template weights_in<1>();
        fetches.template rows_in<1>();
        fetches.sums_in();
        _tile_dpbf16ps(1, 4, 7);
        _tile_stream_loadd(5, a + register_elements, row_bytes);
        fetches.template weights_in<2>();
        fetches.template rows_in<2>();
        fetches.sums_in();
        finish_row();
        _tile_dpbf16ps(2, 5, 6);
        fetches.template weights_in<3>();
        fetches.template rows_in<3>();
        fetches.sums_in();
        finish_row();
        _tile_dpbf16ps(3, 5, 7);
      }
      while (row < before_rows) finish_row();
      end_tile(panel, pair, 2 * register_rows, sums);
    }
    if (!shape.has_single) continue;
    sums = panel_sums;
    fetches.sums = panel_sums + shape.panel_sums + 2 * register_sums;
    for (size_t group = 0; group < shape.groups; ++group) {
      const uint16_t* const b = panel_b + group * pair_elements;
      _tile_stream_loadd(4, single_a + group * register_elements, row_bytes);
      _tile_loadd(6, b, row_bytes);
      if (group == 0) {
        SWITCHYARD_HAND_OVER(0)
      } else {
        fetches.sums_in();
        fetches.sums_in();
        finish_row();
        finish_row();
      }
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + register_elements, row_bytes);
      if (group == 0) {
        SWITCHYARD_HAND_OVER(1)
        // The tile before has two registers of rows.
        _tile_stored(2, before + 2 * register_sums, sums_row_bytes);
        _tile_stored(3, before + 3 * register_sums, sums_row_bytes);
      } else {
        fetches.sums_in();
        fetches.sums_in();
        finish_row();
      }
      _tile_dpbf16ps(1, 4, 7);
    }
    while (row < before_rows) finish_row();
    end_tile(panel, product.first_tile, register_rows, sums);
  }
  _tile_stored(0, before, sums_row_bytes);
  _tile_stored(1, before + register_sums, sums_row_bytes);
  if (before_rows > register_rows) {
    _tile_stored(2, before + 2 * register_sums, sums_row_bytes);
    _tile_stored(3, before + 3 * register_sums, sums_row_bytes);
  }
  while (row < before_rows) finish_row();
}

/** The only tile, of one register of rows, times all panels: weights are fetched to the nearest cache. */
template <typename Ending>
SWITCHYARD_TARGET void multiply_single(const PartProduct& product, const Shape& shape) {
  Ending ending(product);
  const uint16_t* const first_a = product.a + product.order.element(product.part, product.first_tile);
  const uint16_t* b = product.b;
  // Rows that pad the tile stay what they are: nothing is made of them but more of their kind.
  const size_t rows = std::min(register_rows, product.finish.rows.size() - product.order.tiles.begin(product.first_tile));
  for (size_t panel = 0; panel < product.panels; ++panel) {
    const uint16_t* a = first_a;
    float* const sums = product.sums + panel * shape.panel_sums;
    if (product.is_first()) {
      _tile_zero(0);
      _tile_zero(1);
    } else {
      _tile_loadd(0, sums, sums_row_bytes);
      _tile_loadd(1, sums + register_sums, sums_row_bytes);
    }
    for (size_t group = 0; group < shape.groups; ++group, a += register_elements, b += pair_elements) {
#pragma GCC unroll 32
      for (size_t line = 0; line < pair_lines; ++line) fetch_near(b + near_elements + line * line_elements);
      _tile_loadd(4, a, row_bytes);
      _tile_loadd(6, b, row_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + register_elements, row_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, sums, sums_row_bytes);
    _tile_stored(1, sums + register_sums, sums_row_bytes);
    if constexpr (Ending::finishes) {
      ending.at(product.first_panel + panel, product.first_tile);
      for (size_t row = 0; row < rows; ++row) ending.row(sums, row);
    }
  }
}

template <typename Ending>
void multiply_unscaled(const PartProduct& product, const Shape& shape) {
  // So many lines a group, that all pairs together fetch the next panel's part.
  switch (std::bit_floor(shape.pairs())) {
    case 0: multiply_single<Ending>(product, shape); break;
    case 1: multiply_pairs<Ending, 0>(product, shape); break;
    case 2: multiply_pairs<Ending, 16>(product, shape); break;
    case 4: multiply_pairs<Ending, 8>(product, shape); break;
    case 8: multiply_pairs<Ending, 4>(product, shape); break;
    default: multiply_pairs<Ending, 2>(product, shape);
  }
}

/** The sums of a step, which are not added yet to those before: they are read when the next step's are stored, not as soon as they are. */
struct Step {
  const float* own;
  const Scales scales;
  const StepSums row_sums;
  size_t rows;
  bool goes_on;
  float* sums;

  SWITCHYARD_TARGET void add() const {
    for (size_t half = 0; half < 2; ++half) {
      const __m512 scale = load_scales(scales, 0, half * register_columns);
      const __m512 zeros = scales.zeros == nullptr ? _mm512_setzero_ps() : load_zeros(scales, 0, half * register_columns);
      for (size_t row = 0; row < rows; ++row) {
        const size_t at = (row / register_rows * 2 + half) * register_sums + row % register_rows * register_columns;
        const __m512 before = goes_on ? _mm512_loadu_ps(sums + at) : _mm512_setzero_ps();
        __m512 sum = _mm512_loadu_ps(own + at);
        if (scales.zeros != nullptr) sum = _mm512_fnmadd_ps(zeros, _mm512_set1_ps(row_sums.of(0, row)), sum);
        _mm512_storeu_ps(sums + at, _mm512_fmadd_ps(sum, scale, before));
      }
    }
  }
};

/** Tiles times one panel, whose steps are summed by themselves. Rows are read past the nearest cache, as in multiply_pairs. */
template <typename Ending>
SWITCHYARD_TARGET void multiply_scaled(const PartProduct& product) {
  alignas(64) float step_sums[2][pair_sums];
  Ending ending(product);
  float* sums = product.sums;
  const char* next = static_cast<const char*>(product.next);
  const Scales& scales = product.scales;
  for (size_t tile = product.first_tile; tile < product.end_tile; ++tile) {
    const size_t rows = product.order.tiles.size(tile);
    const bool two_registers = rows > register_rows;
    const uint16_t* a = product.a + product.order.element(product.part, tile);
    const uint16_t* b = product.b;
    std::optional<Step> before;
    const size_t lines = next == nullptr ? 0 : divide_up(product.next_lines, product.end_tile - product.first_tile);
    float* own = step_sums[0];
    for (size_t group = 0; group < product.groups();) {
      const size_t first = group;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (; group < std::min(first + scales.groups, product.groups()); ++group, a += rows * group_depth, b += pair_elements) {
        for (size_t line = 0; line < lines; ++line, next += line_bytes) fetch_far(next);
        _tile_stream_loadd(4, a, row_bytes);
        _tile_loadd(6, b, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + register_elements, row_bytes);
        _tile_dpbf16ps(1, 4, 7);
        if (!two_registers) continue;
        _tile_stream_loadd(5, a + register_elements, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, own, sums_row_bytes);
      _tile_stored(1, own + register_sums, sums_row_bytes);
      if (two_registers) {
        _tile_stored(2, own + 2 * register_sums, sums_row_bytes);
        _tile_stored(3, own + 3 * register_sums, sums_row_bytes);
      }
      if (before) before->add();
      before.emplace(Step{own, scales.from(first), product.step_sums.from(first / scales.groups, product.order.tiles.begin(tile)), rows, !product.is_first() || first > 0, sums});
      own = own == step_sums[0] ? step_sums[1] : step_sums[0];
    }
    before->add();
    if constexpr (Ending::finishes) {
      ending.at(product.first_panel, tile);
      for (size_t row = 0; row < rows; ++row) ending.row(sums, row);
    }
    sums += rows * pair_columns;
  }
}

SWITCHYARD_TARGET void multiply(const PartProduct& product) {
  configure();
  with_ending(product, [&](auto type) {
    using Ending = typename decltype(type)::type;
    if (product.scales.groups == 0) multiply_unscaled<Ending>(product, Shape(product));
    else multiply_scaled<Ending>(product);
  });
  _tile_release();
  // What was written past the caches is seen by whoever is told of it.
  _mm_sfence();
}

bool supported() {
  constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & amx_bf16) == 0 || (edx & amx_tile) == 0 || !avx512_bf16_kernels.supported()) return false;
  // Linux gives a process the tile registers when it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

const Kernels amx_bf16_kernels = {
    .name = "amx-bf16",
    .order = {.columns = pair_columns, .tile_columns = register_columns, .band_panels = 16, .part_groups = 16, .code_blocks = true},
    .block_rows = 512,
    .row_unit = register_rows,
    .tile_rows = 2 * register_rows,
    .single_tile_rows = 2 * register_rows,
    .streamed_rows = 2 * register_rows,
    .supported = supported,
    .multiply = multiply,
    .coded_rows = 0,
    .takes_pairs = nullptr,
    .multiply_coded = nullptr,
    .widen = widen_groups<pair_columns, register_columns>,
};

}  // namespace switchyard::cpu
