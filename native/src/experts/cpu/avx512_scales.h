#pragma once

#include <immintrin.h>

#include "experts/cpu/kernels.h"
#include "experts/cpu/layout.h"

namespace switchyard::cpu {

/** The scales of sixteen columns, in float32. */
__attribute__((target("avx512f"), always_inline)) inline __m512 load_sixteen_scales(const Scales& scales, size_t step, size_t column) {
  const size_t at = step * panel_columns + column;
  if (scales.narrow == nullptr) return _mm512_loadu_ps(scales.wide + at);
  const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales.narrow + at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}

}  // namespace switchyard::cpu
