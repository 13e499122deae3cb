#include "kernels/norm.h"

#include <cmath>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/non_finite.h"
#include "kernels/lanes.h"

namespace switchyard {
namespace {

SWITCHYARD_AVX2 inline lanes::Pair add_squares(lanes::Pair sums, __m256i bits) {
  const lanes::Pair x = lanes::widen(bits);
  return {_mm256_fmadd_ps(x.even, x.even, sums.even), _mm256_fmadd_ps(x.odd, x.odd, sums.odd)};
}

/** Two pairs of sums take turns, so that an addition need not wait for the one before it. */
SWITCHYARD_AVX2 float sum_of_squares(const std::uint16_t* row, std::size_t hidden) {
  lanes::Pair sums = lanes::zero();
  lanes::Pair others = lanes::zero();
  std::size_t i = 0;
  for (; i + 2 * lanes::width <= hidden; i += 2 * lanes::width) {
    sums = add_squares(sums, lanes::load(row + i));
    others = add_squares(others, lanes::load(row + i + lanes::width));
  }
  for (; i < hidden; i += lanes::width) {
    const std::size_t count = hidden - i < lanes::width ? hidden - i : lanes::width;
    sums = add_squares(sums, lanes::load_tail(row + i, count));
  }
  return lanes::sum(_mm256_add_ps(_mm256_add_ps(sums.even, sums.odd), _mm256_add_ps(others.even, others.odd)));
}

SWITCHYARD_AVX2 inline __m256i scale_lanes(__m256i bits, __m256i weight_bits, __m256 factor) {
  const lanes::Pair x = lanes::widen(bits);
  const lanes::Pair weight = lanes::widen(weight_bits);
  return lanes::narrow({_mm256_mul_ps(_mm256_mul_ps(x.even, factor), weight.even),
                        _mm256_mul_ps(_mm256_mul_ps(x.odd, factor), weight.odd)});
}

SWITCHYARD_AVX2 void scale_row(const std::uint16_t* row, std::size_t hidden, const std::uint16_t* weight, float mean,
                               std::uint16_t* output) {
  const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(mean));
  std::size_t i = 0;
  for (; i + lanes::width <= hidden; i += lanes::width) {
    lanes::store(output + i, scale_lanes(lanes::load(row + i), lanes::load(weight + i), factor));
  }
  if (i == hidden) return;
  const std::size_t tail = hidden - i;
  const __m256i scaled = scale_lanes(lanes::load_tail(row + i, tail), lanes::load_tail(weight + i, tail), factor);
  lanes::store_tail(output + i, scaled, tail);
}

float mean_of_squares(const std::uint16_t* row, std::size_t hidden) {
  return sum_of_squares(row, hidden) / static_cast<float>(hidden);
}

/** For a row whose squares overflow: it is divided by 2^96 first, beside which epsilon is nothing. */
void normalize_large_row(const std::uint16_t* row, std::size_t hidden, const std::uint16_t* weight,
                         std::uint16_t* output) {
  std::vector<std::uint16_t> smaller(hidden);
  for (std::size_t i = 0; i < hidden; ++i) smaller[i] = float_to_bf16(bf16_to_float(row[i]) * 0x1p-96f);
  scale_row(smaller.data(), hidden, weight, mean_of_squares(smaller.data(), hidden), output);
}

/** Whether the row holds NaN or infinity. */
bool normalize_row(const std::uint16_t* row, std::size_t hidden, const std::uint16_t* weight, float epsilon,
                   std::uint16_t* output) {
  const float mean = mean_of_squares(row, hidden);
  // Every square takes part, so only here can one be NaN or infinite.
  const bool non_finite = !std::isfinite(mean) && count_non_finite(row, 1, hidden) > 0;
  if (std::isinf(mean)) [[unlikely]] {
    normalize_large_row(row, hidden, weight, output);
  } else {
    scale_row(row, hidden, weight, mean + epsilon, output);
  }
  return non_finite;
}

}  // namespace

std::size_t normalize_rows(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden,
                           const std::uint16_t* weight, float epsilon, std::uint16_t* output) {
  std::size_t non_finite = 0;
  for (std::size_t r = 0; r < row_count; ++r) {
    non_finite += normalize_row(rows + r * hidden, hidden, weight, epsilon, output + r * hidden);
  }
  return non_finite;
}

}  // namespace switchyard
