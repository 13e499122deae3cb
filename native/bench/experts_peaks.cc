#include "experts_peaks.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>

// The compiler's own headers read an undefined register on purpose; GCC 12 warns of it.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace switchyard::bench {
namespace {

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define AMX __attribute__((target("avx512f,amx-tile,amx-bf16")))
#define AVX2 __attribute__((target("avx2,fma")))

volatile float sink;

/** BF16 pairs of ordinary values, so that multipliers switch as they do in earnest. */
const uint16_t* operands(size_t count) {
  alignas(64) static uint16_t values[32768];
  uint32_t state = 12345;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    values[i] = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

AVX512 double registers_avx512(size_t turns) {
  constexpr int sums_count = 24;
  const uint16_t* values = operands(256);
  __m512bh a[2], b[2];
  for (int i = 0; i < 2; ++i) {
    a[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(values + 32 * i));
    b[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(values + 64 + 32 * i));
  }
  __m512 sums[sums_count];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (size_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 24
    for (int i = 0; i < sums_count; ++i) {
      sums[i] = _mm512_dpbf16_ps(sums[i], a[i & 1], b[(i >> 1) & 1]);
    }
  }
  for (int i = 1; i < sums_count; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
  return static_cast<double>(turns) * sums_count * 64;
}

/** 6 x 64 outputs per step, 16 KiB of operands: each vector read serves six multiplications. */
AVX512 double cache_avx512(size_t turns) {
  constexpr int rows = 6, steps = 56;
  const uint16_t* values = operands(8192);
  __m512 sums[rows][4];
  for (auto& row : sums) {
    for (__m512& sum : row) sum = _mm512_setzero_ps();
  }
  for (size_t turn = 0; turn < turns; ++turn) {
    const uint16_t* b = values;
    const uint16_t* a = values + steps * 128;
    asm volatile("" : "+r"(a), "+r"(b));
#pragma GCC unroll 4
    for (int step = 0; step < steps; ++step) {
      __m512bh weights[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) weights[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + step * 128 + i * 32));
#pragma GCC unroll 6
      for (int row = 0; row < rows; ++row) {
        int both;
        std::memcpy(&both, a + step * 12 + row * 2, sizeof both);
        const __m512bh element = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[row][i] = _mm512_dpbf16_ps(sums[row][i], element, weights[i]);
      }
    }
  }
  __m512 total = _mm512_setzero_ps();
  for (auto& row : sums) {
    for (__m512& sum : row) total = _mm512_add_ps(total, sum);
  }
  sink = _mm512_reduce_add_ps(total);
  return static_cast<double>(turns) * steps * rows * 4 * 64;
}

/** What ldtilecfg reads: eight full tiles of 16 rows of 64 bytes. */
AMX void configure_tiles() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } configuration;
  asm volatile("" : : "r"(&configuration) : "memory");
  _tile_loadconfig(&configuration);
}

/** One tile product: 16 x 16 sums of 32 products. */
constexpr double tile_flops = 16 * 16 * 32 * 2;

AMX double registers_amx(size_t turns) {
  const uint16_t* values = operands(2048);
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, values, 64);
  _tile_loadd(5, values + 512, 64);
  _tile_loadd(6, values + 1024, 64);
  _tile_loadd(7, values + 1536, 64);
  for (size_t turn = 0; turn < turns; ++turn) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(turns) * 4 * tile_flops;
}

/** 32 x 32 outputs per step, 28 KiB of operands: each tile read serves two products. */
AMX double cache_amx(size_t turns) {
  constexpr size_t steps = 7, tile = 512;
  const uint16_t* values = operands(steps * 4 * tile);
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (size_t turn = 0; turn < turns; ++turn) {
    const uint16_t* at = values;
    for (size_t step = 0; step < steps; ++step, at += 4 * tile) {
      _tile_loadd(6, at, 64);
      _tile_loadd(7, at + tile, 64);
      _tile_loadd(4, at + 2 * tile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, at + 3 * tile, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
  return static_cast<double>(turns) * steps * 4 * tile_flops;
}

AVX2 double registers_avx2(size_t turns) {
  constexpr int sums_count = 12;
  __m256 a = _mm256_set1_ps(0.99f), b = _mm256_set1_ps(0.37f);
  __m256 sums[sums_count];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (size_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < sums_count; ++i) {
      sums[i] = _mm256_fmadd_ps(a, b, sums[i]);
    }
  }
  for (int i = 1; i < sums_count; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  float lanes[8];
  _mm256_storeu_ps(lanes, sums[0]);
  sink = lanes[0];
  return static_cast<double>(turns) * sums_count * 16;
}

/** 6 x 16 outputs per step from float32 operands. */
AVX2 double cache_avx2(size_t turns) {
  constexpr int rows = 6, steps = 128;
  alignas(64) static float values[steps * (16 + rows)];
  for (float& value : values) value = 0.5f;
  __m256 sums[rows][2];
#pragma GCC unroll 6
  for (auto& row : sums) row[0] = row[1] = _mm256_setzero_ps();
  for (size_t turn = 0; turn < turns; ++turn) {
    const float* b = values;
    const float* a = values + steps * 16;
    asm volatile("" : "+r"(a), "+r"(b));
#pragma GCC unroll 2
    for (int step = 0; step < steps; ++step) {
      const __m256 low = _mm256_loadu_ps(b + step * 16);
      const __m256 high = _mm256_loadu_ps(b + step * 16 + 8);
#pragma GCC unroll 6
      for (int row = 0; row < rows; ++row) {
        const __m256 element = _mm256_broadcast_ss(a + step * rows + row);
        sums[row][0] = _mm256_fmadd_ps(element, low, sums[row][0]);
        sums[row][1] = _mm256_fmadd_ps(element, high, sums[row][1]);
      }
    }
  }
  __m256 total = _mm256_setzero_ps();
#pragma GCC unroll 6
  for (auto& row : sums) total = _mm256_add_ps(total, _mm256_add_ps(row[0], row[1]));
  float lanes[8];
  _mm256_storeu_ps(lanes, total);
  sink = lanes[0];
  return static_cast<double>(turns) * steps * rows * 2 * 16;
}

double rate(double (*run)(size_t), size_t turns) {
  const double begin = seconds_now();
  const double flops = run(turns);
  return flops / (seconds_now() - begin);
}

/** Four streams a quarter apart: one alone waits for each page's first lines. */
AVX2 void read_all(const char* memory, size_t bytes) {
  const size_t quarter = bytes / 4 / 256 * 256;
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (size_t at = 0; at < quarter; at += 256) {
#pragma GCC unroll 4
    for (size_t stream = 0; stream < 4; ++stream) {
      const char* const line = memory + stream * quarter + at;
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + i * 32)));
      }
    }
  }
  for (int i = 1; i < 8; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
  float lanes[8];
  std::memcpy(lanes, &sums[0], sizeof lanes);
  sink = lanes[0];
}

AVX2 void read_in_order(const char* memory, size_t bytes) {
  __m256i sums[8];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  for (size_t at = 0; at + 256 <= bytes; at += 256) {
    _mm_prefetch(memory + at + 2048, _MM_HINT_T0);
    _mm_prefetch(memory + at + 2112, _MM_HINT_T0);
    _mm_prefetch(memory + at + 2176, _MM_HINT_T0);
    _mm_prefetch(memory + at + 2240, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(memory + at + i * 32)));
    }
  }
  for (int i = 1; i < 8; ++i) sums[0] = _mm256_xor_si256(sums[0], sums[i]);
  float lanes[8];
  std::memcpy(lanes, &sums[0], sizeof lanes);
  sink = lanes[0];
}

}  // namespace

double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

void prepare(Isa isa) {
  // Linux gives a process the tile registers when it asks for them: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
  constexpr long request_permission = 0x1023, tile_data = 18;
  if (isa == Isa::amx_bf16 && syscall(SYS_arch_prctl, request_permission, tile_data) != 0) {
    throw std::runtime_error("the system gives this process no tile registers");
  }
}

double register_flops(Isa isa) {
  if (isa == Isa::avx2) return rate(registers_avx2, 1000000);
  return isa == Isa::amx_bf16 ? rate(registers_amx, 300000) : rate(registers_avx512, 400000);
}

double cached_flops(Isa isa) {
  if (isa == Isa::avx2) return rate(cache_avx2, 8000);
  return isa == Isa::amx_bf16 ? rate(cache_amx, 40000) : rate(cache_avx512, 7000);
}

double read_bytes_per_second(const void* memory, size_t bytes) {
  const char* const begin = static_cast<const char*>(memory);
  const double start = seconds_now();
  read_all(begin, bytes);
  const double middle = seconds_now();
  read_in_order(begin, bytes);
  const double end = seconds_now();
  const double streams = static_cast<double>(bytes) / (middle - start);
  const double order = static_cast<double>(bytes) / (end - middle);
  return streams > order ? streams : order;
}

}  // namespace switchyard::bench
