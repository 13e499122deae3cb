#include "kernels/convert.h"

#include <algorithm>
#include <cstring>

#include "kernels/lanes.h"

/** F16C came before AVX2, so every processor that the library runs on has it. */
#define SWITCHYARD_F16C __attribute__((target("avx2,fma,f16c")))

namespace switchyard {
namespace {

constexpr std::size_t width = 8;

/** Eight floats as BF16 values. */
SWITCHYARD_F16C inline __m128i to_bf16(__m256 values) {
  const __m256i upper = _mm256_srli_epi32(lanes::round_upper_or_nan(values), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(upper, upper), 0x08);
  return _mm256_castsi256_si128(packed);
}

SWITCHYARD_F16C inline __m256 from_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

template <RowDtype dtype>
SWITCHYARD_F16C inline __m256 load(const std::byte* from) {
  if constexpr (dtype == RowDtype::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(from));
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

template <RowDtype dtype>
SWITCHYARD_F16C inline void store(std::byte* to, __m256 values) {
  if constexpr (dtype == RowDtype::f32) {
    _mm256_storeu_ps(reinterpret_cast<float*>(to), values);
  } else {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
  }
}

template <RowDtype dtype>
SWITCHYARD_F16C void narrow(const std::byte* from, std::size_t count, std::uint16_t* to) {
  constexpr std::size_t stored = bytes_of(dtype);
  std::size_t i = 0;
  for (; i + width <= count; i += width) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), to_bf16(load<dtype>(from + i * stored)));
  }
  if (i == count) return;
  std::byte padded[width * stored] = {};
  std::uint16_t narrowed[width];
  std::memcpy(padded, from + i * stored, (count - i) * stored);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(narrowed), to_bf16(load<dtype>(padded)));
  std::copy_n(narrowed, count - i, to + i);
}

template <RowDtype dtype>
SWITCHYARD_F16C void widen(const std::uint16_t* from, std::size_t count, std::byte* to) {
  constexpr std::size_t stored = bytes_of(dtype);
  std::size_t i = 0;
  for (; i + width <= count; i += width) {
    store<dtype>(to + i * stored, from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  if (i == count) return;
  std::uint16_t padded[width] = {};
  std::byte widened[width * stored];
  std::copy_n(from + i, count - i, padded);
  store<dtype>(widened, from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(padded))));
  std::memcpy(to + i * stored, widened, (count - i) * stored);
}

}  // namespace

void narrow_rows(const std::byte* from, RowDtype dtype, std::size_t count, std::uint16_t* to) {
  if (dtype == RowDtype::f32) narrow<RowDtype::f32>(from, count, to);
  else if (dtype == RowDtype::f16) narrow<RowDtype::f16>(from, count, to);
  else std::memcpy(to, from, count * sizeof(std::uint16_t));
}

void widen_rows(const std::uint16_t* from, std::size_t count, RowDtype dtype, std::byte* to) {
  if (dtype == RowDtype::f32) widen<RowDtype::f32>(from, count, to);
  else if (dtype == RowDtype::f16) widen<RowDtype::f16>(from, count, to);
  else std::memcpy(to, from, count * sizeof(std::uint16_t));
}

}  // namespace switchyard
