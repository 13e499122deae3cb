#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

/** What every processor that loads the library has; see Gate for the one kernel that goes beyond it. */
#define SWITCHYARD_AVX2 __attribute__((target("avx2,fma")))

namespace switchyard::lanes {

/** BF16 values in one 256-bit register. */
inline constexpr std::size_t width = 16;

/**
 * 16 consecutive BF16 values as floats, those of even and those of odd index apart: widening and narrowing are then
 * shifts and masks within a 32-bit lane, with no shuffle.
 */
struct Pair {
  __m256 even;
  __m256 odd;
};

SWITCHYARD_AVX2 inline Pair zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }

SWITCHYARD_AVX2 inline Pair widen(__m256i bits) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}

SWITCHYARD_AVX2 inline __m256i load(const std::uint16_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

/** The last `count` < 16 values of a row, and zeros. */
SWITCHYARD_AVX2 inline __m256i load_tail(const std::uint16_t* from, std::size_t count) {
  alignas(32) std::uint16_t padded[width] = {};
  std::memcpy(padded, from, count * sizeof(std::uint16_t));
  return load(padded);
}

/** float_to_bf16 of every lane that is not NaN, in the upper half; the lower half is rubbish. */
SWITCHYARD_AVX2 inline __m256i round_upper(__m256i bits) {
  const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last);
}

SWITCHYARD_AVX2 inline __m256i round_upper_or_nan(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(round_upper(bits), quiet, is_nan);
}

/** float_to_bf16 of the 16 values. */
SWITCHYARD_AVX2 inline __m256i narrow(Pair values) {
  __m256i even = round_upper(_mm256_castps_si256(values.even));
  __m256i odd = round_upper(_mm256_castps_si256(values.odd));
  // One comparison finds a NaN on either side: tokens hold none as a rule.
  if (_mm256_movemask_ps(_mm256_cmp_ps(values.even, values.odd, _CMP_UNORD_Q)) != 0) [[unlikely]] {
    even = round_upper_or_nan(values.even);
    odd = round_upper_or_nan(values.odd);
  }
  return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
}

/** `streaming`: past the caches; `to` is then aligned to 32 bytes. */
template <bool streaming = false>
SWITCHYARD_AVX2 inline void store(std::uint16_t* to, __m256i bits) {
  if constexpr (streaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits);
  } else {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
  }
}

SWITCHYARD_AVX2 inline void store_tail(std::uint16_t* to, __m256i bits, std::size_t count) {
  alignas(32) std::uint16_t padded[width];
  store(padded, bits);
  std::memcpy(to, padded, count * sizeof(std::uint16_t));
}

/** The larger magnitude of each lane, of `found` and the values: what has_non_finite looks at in the end. */
SWITCHYARD_AVX2 inline __m256i larger_magnitude(__m256i found, __m256i bits) {
  return _mm256_max_epu16(found, _mm256_and_si256(bits, _mm256_set1_epi16(0x7fff)));
}

/** Whether NaN or infinity, whose exponents are all ones, are among the values whose magnitudes these are. */
SWITCHYARD_AVX2 inline bool has_non_finite(__m256i magnitudes) {
  const __m256i infinity = _mm256_set1_epi16(0x7f80);
  return _mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_max_epu16(magnitudes, infinity), magnitudes)) != 0;
}

/** Sum of the eight lanes, always in the same order. */
SWITCHYARD_AVX2 inline float sum(__m256 value) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

}  // namespace switchyard::lanes
