#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "experts/cpu/avx512_scales.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define SWITCHYARD_TARGET __attribute__((target("amx-tile,amx-bf16")))

namespace switchyard::cpu {
namespace {

constexpr size_t register_rows = 16;
constexpr size_t row_bytes = group_depth * sizeof(uint16_t);
constexpr size_t sums_stride = panel_columns * sizeof(float);
/** From one pair of k of a panel to the next. */
constexpr size_t panel_stride = panel_columns * 2 * sizeof(uint16_t);
/** Elements of a panel's line: 16 columns of one pair of k. */
constexpr size_t line_elements = 32;

/** What ldtilecfg reads. */
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

/**
 * Registers 0 to 3 hold sums (rows 0 to 15: 0 and 1; rows 16 to 31: 2 and 3), 4 and 5 rows of A, 6 and 7
 * weights. Rows that a tile lacks are left out of the shapes, so they cost nothing.
 */
SWITCHYARD_TARGET void configure(size_t rows) {
  TileConfiguration configuration;
  const uint8_t first = static_cast<uint8_t>(std::min(rows, register_rows));
  const uint8_t second = static_cast<uint8_t>(rows - first);
  const uint8_t shapes[8] = {first, first, second, second, first, second, register_rows, register_rows};
  for (int i = 0; i < 8; ++i) {
    if (shapes[i] == 0) continue;
    configuration.rows[i] = shapes[i];
    configuration.bytes_per_row[i] = row_bytes;
  }
  // The intrinsic tells the compiler of the first bytes only; all of them must be in memory.
  asm volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
}

/** Up to 32 rows times half a panel. */
template <bool TwoRegisters>
SWITCHYARD_TARGET void multiply_half(const TileProduct& product, size_t half) {
  float* const c = product.c + half * panel_columns / 2;
  float* const lower_c = c + register_rows * panel_columns;
  if (product.accumulate) {
    _tile_loadd(0, c, sums_stride);
    _tile_loadd(1, c + 16, sums_stride);
    if constexpr (TwoRegisters) {
      _tile_loadd(2, lower_c, sums_stride);
      _tile_loadd(3, lower_c + 16, sums_stride);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TwoRegisters) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  const uint16_t* a = product.a;
  const uint16_t* b = product.b + half * 2 * line_elements;
  const uint16_t* next_a = product.next_a;
  // Each half fetches its half of what the product is to fetch.
  const size_t lines = product.fetch_lines / 2;
  const char* fetch = reinterpret_cast<const char*>(product.fetch) + half * product.groups * lines * 64;
  for (size_t group = 0; group < product.groups; ++group) {
    for (size_t line = 0; line < lines; ++line, fetch += 64) _mm_prefetch(fetch, _MM_HINT_T2);
    if (half == 1) {
      for (size_t row = 0; row < product.rows; ++row, next_a += group_depth) {
        _mm_prefetch(reinterpret_cast<const char*>(next_a), _MM_HINT_T0);
      }
    }
    _tile_loadd(6, b, panel_stride);
    _tile_loadd(7, b + line_elements, panel_stride);
    _tile_loadd(4, a, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TwoRegisters) {
      _tile_loadd(5, a + register_rows * group_depth, row_bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += product.rows * group_depth;
    b += panel_group_elements;
  }
  _tile_stored(0, c, sums_stride);
  _tile_stored(1, c + 16, sums_stride);
  if constexpr (TwoRegisters) {
    _tile_stored(2, lower_c, sums_stride);
    _tile_stored(3, lower_c + 16, sums_stride);
  }
}

SWITCHYARD_TARGET void multiply_unscaled(const TileProduct& product) {
  configure(product.rows);
  for (size_t half = 0; half < 2; ++half) {
    if (product.rows > register_rows) {
      multiply_half<true>(product, half);
    } else {
      multiply_half<false>(product, half);
    }
  }
  _tile_release();
}

/** Adds the sums of a step to those so far. Every CPU with AMX has AVX-512 too. */
__attribute__((target("avx512f,avx512bw"))) void add_step(const float* sums, const Scales& scales, size_t rows, bool goes_on, float* c) {
  for (size_t column = 0; column < panel_columns; column += 16) {
    const __m512 scale = load_sixteen_scales(scales, 0, column);
    for (size_t row = 0; row < rows; ++row) {
      float* const to = c + row * panel_columns + column;
      const __m512 before = goes_on ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
      _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_loadu_ps(sums + row * panel_columns + column), scale, before));
    }
  }
}

/** One product a step of scales, whose sums are then added. */
void multiply_steps(const TileProduct& product) {
  alignas(64) float sums[2 * register_rows * panel_columns];
  TileProduct step = product;
  step.c = sums;
  step.accumulate = false;
  for (size_t group = 0; group < product.groups; group += product.scales.groups) {
    step.groups = std::min(product.scales.groups, product.groups - group);
    multiply_unscaled(step);
    add_step(sums, product.scales.from(group), product.rows, product.accumulate || group > 0, product.c);
    step.a += step.groups * product.rows * group_depth;
    step.b += step.groups * panel_group_elements;
    step.next_a += step.groups * product.rows * group_depth;
  }
}

void multiply(const TileProduct& product) {
  if (product.scales.groups == 0) multiply_unscaled(product);
  else multiply_steps(product);
}

// Every CPU with AMX has AVX-512-BF16 too.
void widen(const PackedPanel& panel, size_t first_group, size_t groups, uint16_t* out) {
  avx512_bf16_kernels.widen(panel, first_group, groups, out);
}
template <Activation activation>
void activate(const float* c, const Epilogue& epilogue, size_t rows, uint16_t* h) {
  avx512_bf16_kernels.activate[static_cast<size_t>(activation)](c, epilogue, rows, h);
}
void store(const float* c, const float* bias, uint16_t* out, size_t columns) { avx512_bf16_kernels.store(c, bias, out, columns); }

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
    .tile_rows = 2 * register_rows,
    .single_tile_rows = 2 * register_rows,
    .streamed_rows = 2 * register_rows,
    .supported = supported,
    .multiply = multiply,
    .coded_rows = 0,
    .multiply_codes = nullptr,
    .widen = widen,
    .activate = {activate<Activation::swiglu>, activate<Activation::geglu>, activate<Activation::gelu>, activate<Activation::relu2>},
    .store = store,
};

}  // namespace switchyard::cpu
