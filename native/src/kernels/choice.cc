#include "kernels/choice.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/lanes.h"

namespace switchyard {
namespace {

constexpr std::size_t step = 8;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/**
 * e^x within 2 units in the last place, the same on every processor; NaN stays NaN, and what is out of the range of
 * normal floats is cut to it. e^x = 2^n * e^r with |r| <= ln(2)/2, polynomial of Cephes' expf.
 */
SWITCHYARD_AVX2 inline __m256 exponential(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(88.0f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 polynomial = _mm256_set1_ps(1.9875691500e-4f);
  for (const float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
    polynomial = _mm256_fmadd_ps(polynomial, r, _mm256_set1_ps(coefficient));
  }
  const __m256 value = _mm256_add_ps(_mm256_fmadd_ps(polynomial, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent));
  return _mm256_blendv_ps(scaled, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

SWITCHYARD_AVX2 float largest(const float* values, std::size_t count) {
  __m256 most = _mm256_loadu_ps(values);
  for (std::size_t i = step; i < count; i += step) most = _mm256_max_ps(most, _mm256_loadu_ps(values + i));
  alignas(32) float lane[step];
  _mm256_store_ps(lane, most);
  return *std::max_element(lane, lane + step);
}

SWITCHYARD_AVX2 void softmax(float* logits, std::size_t experts, std::size_t padded) {
  std::fill(logits + experts, logits + padded, minus_infinity);
  const __m256 shift = _mm256_set1_ps(largest(logits, padded));
  __m256 sums = _mm256_setzero_ps();
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 value = exponential(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift));
    _mm256_storeu_ps(logits + i, value);
    sums = _mm256_add_ps(sums, value);
  }
  const __m256 sum = _mm256_set1_ps(lanes::sum(sums));
  for (std::size_t i = 0; i < padded; i += step) {
    _mm256_storeu_ps(logits + i, _mm256_div_ps(_mm256_loadu_ps(logits + i), sum));
  }
}

SWITCHYARD_AVX2 void sigmoid(float* logits, std::size_t padded) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 negative = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_loadu_ps(logits + i));
    _mm256_storeu_ps(logits + i, _mm256_div_ps(one, _mm256_add_ps(one, exponential(negative))));
  }
}

/** Orders like the value, NaN lowest; of equal values the lower index is the greater key. */
std::uint64_t key_of(float value, std::uint32_t index) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  std::uint32_t order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  if (value != value) order = 0;
  return (static_cast<std::uint64_t>(order) << 32) | (0xffffffffu - index);
}

std::uint32_t index_of(std::uint64_t key) { return 0xffffffffu - static_cast<std::uint32_t>(key); }

/** The greatest keys of the values, descending: as many as `best` holds. */
void take_best(std::span<const float> values, std::span<std::uint64_t> best) {
  std::size_t taken = 0;
  for (std::uint32_t i = 0; i < values.size(); ++i) {
    const std::uint64_t key = key_of(values[i], i);
    if (taken == best.size() && key < best.back()) continue;
    std::size_t at = taken < best.size() ? taken++ : taken - 1;
    for (; at > 0 && best[at - 1] < key; --at) best[at] = best[at - 1];
    best[at] = key;
  }
}

}  // namespace

void score_logits(float* logits, std::size_t experts, std::size_t padding, RoutingSpec::Score score) {
  if (score == RoutingSpec::Score::softmax) {
    softmax(logits, experts, experts + padding);
  } else {
    sigmoid(logits, experts + padding);
  }
}

Chooser::Chooser(const RoutingSpec& routing, std::vector<float> selection_bias)
    : routing_(routing),
      bias_(std::move(selection_bias)),
      selection_(bias_.size()),
      group_scores_(routing.groups),
      best_experts_(routing.top_k),
      best_groups_(routing.groups_chosen),
      group_chosen_(routing.groups) {}

float Chooser::group_score(std::span<const float> members) const {
  float first = members[0];
  float second = minus_infinity;
  for (const float value : members.subspan(1)) {
    if (value > first) {
      second = first;
      first = value;
    } else if (value > second) {
      second = value;
    }
  }
  return routing_.group_score == RoutingSpec::GroupScore::max ? first : first + second;
}

void Chooser::mask_groups() {
  const std::size_t size = selection_.size() / routing_.groups;
  const std::span<float> selection(selection_);
  for (std::size_t g = 0; g < routing_.groups; ++g) group_scores_[g] = group_score(selection.subspan(g * size, size));
  take_best(group_scores_, best_groups_);
  std::fill(group_chosen_.begin(), group_chosen_.end(), false);
  for (const std::uint64_t key : best_groups_) group_chosen_[index_of(key)] = true;
  const float masked = routing_.masked == RoutingSpec::Masked::zero ? 0.0f : minus_infinity;
  for (std::size_t g = 0; g < routing_.groups; ++g) {
    if (!group_chosen_[g]) std::fill_n(selection_.begin() + static_cast<std::ptrdiff_t>(g * size), size, masked);
  }
}

void Chooser::choose(const float* scores, std::uint32_t* experts, float* weights) {
  for (std::size_t e = 0; e < selection_.size(); ++e) selection_[e] = scores[e] + bias_[e];
  if (routing_.groups_chosen < routing_.groups) mask_groups();
  take_best(selection_, best_experts_);
  float sum = 0;
  for (std::size_t j = 0; j < routing_.top_k; ++j) {
    experts[j] = index_of(best_experts_[j]);
    weights[j] = scores[experts[j]];
    sum += weights[j];
  }
  // Scores too small for a float sum to zero; their weights then stay zero rather than becoming NaN.
  const bool divide = routing_.renormalise && sum != 0;
  for (std::size_t j = 0; j < routing_.top_k; ++j) {
    if (divide) weights[j] /= sum;
    weights[j] *= routing_.scale;
  }
}

}  // namespace switchyard
