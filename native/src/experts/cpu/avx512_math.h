// Included by the files of AVX-512 and of AMX, inside their anonymous namespaces: the functions must be compiled for the set of
// the file, which defines SWITCHYARD_INLINE.

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

/** The scales of sixteen columns, in float32. */
SWITCHYARD_INLINE __m512 load_scales(const Scales& scales, size_t step, size_t column) {
  const size_t at = step * scales.columns + column;
  if (scales.narrow == nullptr) return _mm512_loadu_ps(scales.wide + at);
  const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales.narrow + at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16));
}

/** Their zero points, likewise. */
SWITCHYARD_INLINE __m512 load_zeros(const Scales& scales, size_t step, size_t column) {
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales.zeros + step * scales.columns + column));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen));
}
