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

SWITCHYARD_AVX2 inline __m256i scale_lanes(__m256i bits, __m256i weight_bits, __m256 factor, __m256 offset) {
  const lanes::Pair x = lanes::widen(bits);
  const lanes::Pair weight = lanes::widen(weight_bits);
  return lanes::narrow({_mm256_mul_ps(_mm256_mul_ps(x.even, factor), _mm256_add_ps(weight.even, offset)),
                        _mm256_mul_ps(_mm256_mul_ps(x.odd, factor), _mm256_add_ps(weight.odd, offset))});
}

struct NoSink {
  void take(std::size_t, __m256i) const {}
};

/** Scales `count` elements from `row` on by factor and weight, and hands them to the sink too. */
template <bool streaming, typename Sink>
SWITCHYARD_AVX2 void scale(const std::uint16_t* row, std::size_t count, const std::uint16_t* weight, float offset,
                           float factor, std::uint16_t* output, Sink sink) {
  const __m256 factors = _mm256_set1_ps(factor);
  const __m256 offsets = _mm256_set1_ps(offset);
  std::size_t i = 0;
  for (; i + lanes::width <= count; i += lanes::width) {
    const __m256i scaled = scale_lanes(lanes::load(row + i), lanes::load(weight + i), factors, offsets);
    lanes::store<streaming>(output + i, scaled);
    sink.take(i, scaled);
  }
  if (i == count) return;
  const std::size_t tail = count - i;
  const __m256i scaled = scale_lanes(lanes::load_tail(row + i, tail), lanes::load_tail(weight + i, tail), factors, offsets);
  lanes::store_tail(output + i, scaled, tail);
  sink.take(i, lanes::load_tail(output + i, tail));
}

float mean_of_squares(const std::uint16_t* row, std::size_t hidden) {
  return sum_of_squares(row, hidden) / static_cast<float>(hidden);
}

float factor_of(float mean) { return 1.0f / std::sqrt(mean); }

/** What a row is scaled by. */
struct Measure {
  float factor;
  bool non_finite;
};

/**
 * A row whose squares overflow is divided by 2^96 first, beside which epsilon is nothing: it is written to `smaller`, and `row` set
 * to that.
 */
Measure measure(const std::uint16_t*& row, std::size_t hidden, float epsilon, std::vector<std::uint16_t>& smaller) {
  const float mean = mean_of_squares(row, hidden);
  // Every square takes part, so only here can one be NaN or infinite.
  const bool non_finite = !std::isfinite(mean) && count_non_finite(row, 1, hidden) > 0;
  if (!std::isinf(mean)) [[likely]] return {factor_of(mean + epsilon), non_finite};
  smaller.resize(hidden);
  for (std::size_t i = 0; i < hidden; ++i) smaller[i] = float_to_bf16(bf16_to_float(row[i]) * 0x1p-96f);
  row = smaller.data();
  return {factor_of(mean_of_squares(row, hidden)), non_finite};
}

}  // namespace

std::size_t normalize_rows(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden,
                           const std::uint16_t* weight, float epsilon, std::uint16_t* output, float offset) {
  std::size_t non_finite = 0;
  std::vector<std::uint16_t> smaller;
  for (std::size_t r = 0; r < row_count; ++r) {
    const std::uint16_t* row = rows + r * hidden;
    const Measure measured = measure(row, hidden, epsilon, smaller);
    scale<false>(row, hidden, weight, offset, measured.factor, output + r * hidden, NoSink());
    non_finite += measured.non_finite;
  }
  return non_finite;
}

std::vector<float> row_factors(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden, float epsilon) {
  std::vector<float> factors(row_count);
  for (std::size_t r = 0; r < row_count; ++r) factors[r] = factor_of(mean_of_squares(rows + r * hidden, hidden) + epsilon);
  return factors;
}

std::size_t NormalizedRows::begin(const std::uint16_t* rows, std::size_t row_count, std::uint16_t* output) {
  output_ = output;
  rows_.clear();
  smaller_.clear();
  std::size_t non_finite = 0;
  std::vector<std::uint16_t> smaller;
  for (std::size_t r = 0; r < row_count; ++r) {
    const std::uint16_t* row = rows + r * hidden_;
    const Measure measured = measure(row, hidden_, epsilon_, smaller);
    rows_.push_back({row, measured.factor});
    if (row == smaller.data()) smaller_.push_back(std::move(smaller));
    non_finite += measured.non_finite;
  }
  return non_finite;
}

template <typename Sink>
void NormalizedRows::pass(std::size_t row, std::size_t first, std::size_t count, Sink sink) const {
  const auto& [values, factor] = rows_[row];
  const auto scale_part = streaming_ ? scale<true, Sink> : scale<false, Sink>;
  scale_part(values + first, count, weight_ + first, offset_, factor, output_ + row * hidden_ + first, sink);
}

void NormalizedRows::widen(std::size_t row, std::size_t first, std::size_t count, float* even, float* odd) {
  pass(row, first, count, lanes::WideSink{even, odd});
}

void NormalizedRows::pair(std::size_t row, std::size_t first, std::size_t count, std::uint32_t* to) {
  pass(row, first, count, lanes::PairSink{to});
}

}  // namespace switchyard
