#include "kernels/fma_peak.h"

#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/lanes.h"

namespace switchyard {
namespace {

constexpr std::size_t turns = 1'000'000;
constexpr std::size_t runs = 5;
/** Operations of a fused multiply-add. */
constexpr double operations = 2;

volatile float sink;

/** Every sum waits for itself alone, and there are more of them than multiply-adds are under way at once. */
__attribute__((target("avx512f"))) double count_avx512() {
  constexpr int sums_count = 24;
  __m512 sums[sums_count];
  const __m512 factor = _mm512_set1_ps(0.999f);
  for (__m512& sum : sums) sum = factor;
  for (std::size_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 24
    for (int i = 0; i < sums_count; ++i) sums[i] = _mm512_fmadd_ps(sums[i], factor, factor);
  }
  for (int i = 1; i < sums_count; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  sink = _mm512_reduce_add_ps(sums[0]);
  return operations * turns * sums_count * 16;
}

SWITCHYARD_AVX2 double count_avx2() {
  constexpr int sums_count = 12;
  __m256 sums[sums_count];
  const __m256 factor = _mm256_set1_ps(0.999f);
  for (__m256& sum : sums) sum = factor;
  for (std::size_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
    for (int i = 0; i < sums_count; ++i) sums[i] = _mm256_fmadd_ps(sums[i], factor, factor);
  }
  for (int i = 1; i < sums_count; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  sink = lanes::sum(sums[0]);
  return operations * turns * sums_count * 8;
}

/** Processor time of this thread: others that want the core do not count. */
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace

double measure_fma_peak() {
  const auto count = __builtin_cpu_supports("avx512f") ? count_avx512 : count_avx2;
  std::array<double, runs> rates;
  for (double& rate : rates) {
    const double start = thread_seconds();
    const double done = count();
    rate = done / (thread_seconds() - start);
  }
  std::sort(rates.begin(), rates.end());
  return rates[runs / 2];
}

}  // namespace switchyard
