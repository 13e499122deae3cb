#include "kernels/choice.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/lanes.h"

namespace switchyard {
namespace {

constexpr std::size_t step = 8;
constexpr float largest_float = std::numeric_limits<float>::max();
constexpr float infinity = std::numeric_limits<float>::infinity();

/**
 * e^x within 2 units in the last place, the same on every processor; 0 below -87 and infinite above 88, where e^x leaves
 * the normal floats. e^x = 2^n * e^r with |r| <= ln(2)/2, polynomial of Cephes' expf.
 */
SWITCHYARD_AVX2 inline __m256 exponential(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.0f);
  const __m256 high = _mm256_set1_ps(88.0f);
  const __m256 inside = _mm256_max_ps(low, _mm256_min_ps(high, x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(inside, _mm256_set1_ps(0x1.715476p+0f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), inside);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
  __m256 polynomial = _mm256_set1_ps(1.9875691500e-4f);
  for (const float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
    polynomial = _mm256_fmadd_ps(polynomial, r, _mm256_set1_ps(coefficient));
  }
  const __m256 value = _mm256_add_ps(_mm256_fmadd_ps(polynomial, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), exponent));
  const __m256 bounded = _mm256_blendv_ps(scaled, _mm256_set1_ps(infinity), _mm256_cmp_ps(x, high, _CMP_GT_OQ));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), bounded);
}

/**
 * Makes the logits of a row finite. One that overflowed is the largest float of its sign; a row that has NaN among them
 * is as good as any other to every expert: all are 0. The padding becomes the lowest float.
 */
SWITCHYARD_AVX2 void settle(float* logits, std::size_t experts, std::size_t padded) {
  std::fill(logits + experts, logits + padded, -largest_float);
  const __m256 high = _mm256_set1_ps(largest_float);
  const __m256 low = _mm256_set1_ps(-largest_float);
  __m256 unordered = _mm256_setzero_ps();
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 value = _mm256_loadu_ps(logits + i);
    unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    _mm256_storeu_ps(logits + i, _mm256_max_ps(low, _mm256_min_ps(high, value)));
  }
  if (_mm256_movemask_ps(unordered) != 0) [[unlikely]] std::fill(logits, logits + experts, 0.0f);
}

SWITCHYARD_AVX2 float largest(const float* values, std::size_t count) {
  __m256 most = _mm256_loadu_ps(values);
  for (std::size_t i = step; i < count; i += step) most = _mm256_max_ps(most, _mm256_loadu_ps(values + i));
  alignas(32) float lane[step];
  _mm256_store_ps(lane, most);
  return *std::max_element(lane, lane + step);
}

/** `scores` may be `logits` itself. */
SWITCHYARD_AVX2 void softmax(const float* logits, std::size_t padded, float* scores) {
  const __m256 shift = _mm256_set1_ps(largest(logits, padded));
  __m256 sums = _mm256_setzero_ps();
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 value = exponential(_mm256_sub_ps(_mm256_loadu_ps(logits + i), shift));
    _mm256_storeu_ps(scores + i, value);
    sums = _mm256_add_ps(sums, value);
  }
  const __m256 sum = _mm256_set1_ps(lanes::sum(sums));
  for (std::size_t i = 0; i < padded; i += step) {
    _mm256_storeu_ps(scores + i, _mm256_div_ps(_mm256_loadu_ps(scores + i), sum));
  }
}

SWITCHYARD_AVX2 void sigmoid(const float* logits, std::size_t padded, float* scores) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 negative = _mm256_sub_ps(_mm256_setzero_ps(), _mm256_loadu_ps(logits + i));
    _mm256_storeu_ps(scores + i, _mm256_div_ps(one, _mm256_add_ps(one, exponential(negative))));
  }
}

/**
 * ln(y) of y in [1, 2], within some units in the last place: with m = y / sqrt(2) scaled to [sqrt(1/2), sqrt(2)], polynomial of Cephes'
 * logf.
 */
SWITCHYARD_AVX2 inline __m256 logarithm(__m256 y) {
  const __m256 above = _mm256_cmp_ps(y, _mm256_set1_ps(0x1.6a09e6p0f), _CMP_GT_OQ);
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 f = _mm256_sub_ps(_mm256_blendv_ps(y, _mm256_mul_ps(y, _mm256_set1_ps(0.5f)), above), one);
  __m256 polynomial = _mm256_set1_ps(7.0376836292e-2f);
  for (const float coefficient : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f}) {
    polynomial = _mm256_fmadd_ps(polynomial, f, _mm256_set1_ps(coefficient));
  }
  const __m256 square = _mm256_mul_ps(f, f);
  const __m256 tail = _mm256_fmadd_ps(_mm256_mul_ps(polynomial, f), square, _mm256_mul_ps(square, _mm256_set1_ps(-0.5f)));
  const __m256 result = _mm256_add_ps(f, tail);
  return _mm256_add_ps(result, _mm256_and_ps(above, _mm256_set1_ps(0x1.62e43p-1f)));
}

/** sqrt(ln(1 + e^x)) = sqrt(max(x, 0) + ln(1 + e^-|x|)). Below -80, where that is e^(x/2), it goes to zero. */
SWITCHYARD_AVX2 void sqrt_softplus(const float* logits, std::size_t padded, float* scores) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (std::size_t i = 0; i < padded; i += step) {
    const __m256 x = _mm256_loadu_ps(logits + i);
    const __m256 small = exponential(_mm256_or_ps(x, sign));
    // Where e^-|x| is small beside 1 it is the logarithm itself.
    const __m256 exact = _mm256_cmp_ps(small, _mm256_set1_ps(0x1p-12f), _CMP_LT_OQ);
    const __m256 log = _mm256_blendv_ps(logarithm(_mm256_add_ps(one, small)), small, exact);
    const __m256 softplus = _mm256_add_ps(_mm256_max_ps(x, _mm256_setzero_ps()), log);
    _mm256_storeu_ps(scores + i, _mm256_sqrt_ps(softplus));
  }
}

/** Orders like the values; the two zeros are one. */
std::uint32_t order_of(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

std::uint64_t key_of(float selection, float logit) {
  return static_cast<std::uint64_t>(order_of(selection)) << 32 | order_of(logit);
}

/** Below every key of finite values. */
constexpr std::uint64_t never = 0;

auto score_of(RoutingSpec::Score score) {
  switch (score) {
    case RoutingSpec::Score::softmax:
    case RoutingSpec::Score::sparse_mixer: return softmax;
    case RoutingSpec::Score::sigmoid: return sigmoid;
    default: return sqrt_softplus;
  }
}

std::size_t padded_size(std::size_t count) { return (count + step - 1) / step * step; }

}  // namespace

float sigmoid_of(float logit) {
  float lanes[step] = {logit};
  settle(lanes, 1, step);
  sigmoid(lanes, step, lanes);
  return lanes[0];
}

Chooser::Chooser(const RoutingSpec& routing, std::vector<float> selection_bias, std::size_t padding)
    : routing_(routing),
      bias_(std::move(selection_bias)),
      biased_(std::ranges::any_of(bias_, [](float bias) { return bias != 0; })),
      scores_(bias_.size() + padding),
      keys_(bias_.size()),
      best_(routing.top_k),
      group_scores_(routing.groups),
      groups_(routing.groups) {}

void Chooser::score(float* logits) {
  settle(logits, keys_.size(), scores_.size());
  if (routing_.logit_cap > 0) cap(logits);
  const auto fill = score_of(routing_.score);
  fill(logits, scores_.size(), scores_.data());
}

void Chooser::weigh_chosen(float* logits, const std::uint32_t* experts, float* weights) {
  score(logits);
  weigh(logits, experts, weights);
}

void Chooser::choose(float* logits, std::uint32_t* experts, float* weights) {
  score(logits);
  rank(logits);
  if (routing_.groups_chosen < routing_.groups) mask_groups(logits);
  take_best();
  for (std::size_t j = 0; j < routing_.top_k; ++j) experts[j] = best_[j].expert;
  weigh(logits, experts, weights);
}

/** tanh(v) = 1 - 2 / (1 + e^2v). */
SWITCHYARD_AVX2 void Chooser::cap(float* logits) const {
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 two = _mm256_set1_ps(2.0f);
  const __m256 most = _mm256_set1_ps(routing_.logit_cap);
  for (std::size_t i = 0; i < scores_.size(); i += step) {
    const __m256 doubled = _mm256_div_ps(_mm256_mul_ps(two, _mm256_loadu_ps(logits + i)), most);
    const __m256 tanh = _mm256_sub_ps(one, _mm256_div_ps(two, _mm256_add_ps(one, exponential(doubled))));
    _mm256_storeu_ps(logits + i, _mm256_mul_ps(most, tanh));
  }
  std::fill(logits + keys_.size(), logits + scores_.size(), -largest_float);
}

SWITCHYARD_AVX2 void Chooser::rank(const float* logits) {
  if (!biased_) {
    for (std::size_t e = 0; e < keys_.size(); ++e) keys_[e] = key_of(logits[e], logits[e]);
  } else {
    for (std::size_t e = 0; e < keys_.size(); ++e) keys_[e] = key_of(scores_[e] + bias_[e], logits[e]);
  }
}

/** By the best expert, or by the sum of the two best; what that leaves equal is decided by their logits. */
Chooser::GroupScore Chooser::score_group(const float* logits, std::size_t first) const {
  const std::size_t size = keys_.size() / routing_.groups;
  std::size_t best = first;
  std::size_t second = first + size;
  for (std::size_t e = first + 1; e < first + size; ++e) {
    if (keys_[e] > keys_[best]) {
      second = best;
      best = e;
    } else if (second == first + size || keys_[e] > keys_[second]) {
      second = e;
    }
  }
  const auto selection = [&](std::size_t expert) { return scores_[expert] + bias_[expert]; };
  if (routing_.group_score == RoutingSpec::GroupScore::top2) {
    return {selection(best) + selection(second), logits[best], logits[second]};
  }
  return {biased_ ? selection(best) : logits[best], logits[best], 0};
}

void Chooser::mask_groups(const float* logits) {
  const std::size_t size = keys_.size() / routing_.groups;
  for (std::size_t g = 0; g < groups_.size(); ++g) group_scores_[g] = score_group(logits, g * size);
  std::iota(groups_.begin(), groups_.end(), 0u);
  std::ranges::partial_sort(groups_, groups_.begin() + routing_.groups_chosen, [&](std::uint32_t a, std::uint32_t b) {
    return group_scores_[a] == group_scores_[b] ? a < b : group_scores_[a] > group_scores_[b];
  });
  // Scores without a bias are above zero.
  const bool zero = biased_ && routing_.masked == RoutingSpec::Masked::zero;
  const Key masked = zero ? key_of(0, -infinity) : never;
  for (std::size_t i = routing_.groups_chosen; i < groups_.size(); ++i) {
    std::fill_n(keys_.begin() + static_cast<std::ptrdiff_t>(groups_[i] * size), size, masked);
  }
}

/** The experts of the greatest keys, descending; of equal ones the lower expert is first. */
void Chooser::take_best() {
  std::size_t taken = 0;
  for (std::uint32_t e = 0; e < keys_.size(); ++e) {
    const Key key = keys_[e];
    if (taken == best_.size() && key <= best_.back().key) continue;
    std::size_t at = taken < best_.size() ? taken++ : taken - 1;
    for (; at > 0 && best_[at - 1].key < key; --at) best_[at] = best_[at - 1];
    best_[at] = {key, e};
  }
}

void Chooser::weigh(const float* logits, const std::uint32_t* experts, float* weights) {
  const std::size_t top_k = routing_.top_k;
  if (routing_.score == RoutingSpec::Score::sparse_mixer) return mix(logits, experts, weights);
  float sum = 0;
  for (std::size_t j = 0; j < top_k; ++j) {
    weights[j] = scores_[experts[j]];
    sum += weights[j];
  }
  // Scores that are small beside a float's range lose their ratios, and where e^logit leaves it they are 0: softmax and sigmoid are then as
  // e^logit, and the other as its root. What is lost of larger sums is below their last bit.
  const bool root = routing_.score == RoutingSpec::Score::sqrt_softplus;
  const float enough = root ? 0x1p-36f : 0x1p-100f;
  if (routing_.renormalise && sum < enough) [[unlikely]] {
    const float power = root ? 0.5f : 1.0f;
    std::vector<float> chosen(padded_size(top_k), -largest_float);
    for (std::size_t j = 0; j < top_k; ++j) chosen[j] = power * logits[experts[j]];
    softmax(chosen.data(), chosen.size(), chosen.data());
    std::copy_n(chosen.begin(), top_k, weights);
  } else if (routing_.renormalise) {
    for (std::size_t j = 0; j < top_k; ++j) weights[j] /= sum;
  }
  if (routing_.renormalise && routing_.norm_power == 2) {
    // Their sum is 1 by now.
    float squares = 0;
    for (std::size_t j = 0; j < top_k; ++j) squares += weights[j] * weights[j];
    for (std::size_t j = 0; j < top_k; ++j) weights[j] /= std::sqrt(squares);
  }
  for (std::size_t j = 0; j < top_k; ++j) weights[j] *= routing_.scale;
}

/** The weight of each chosen expert: its part in a softmax over those that are near it, less those chosen before. */
void Chooser::mix(const float* logits, const std::uint32_t* experts, float* weights) {
  for (std::size_t j = 0; j < routing_.top_k; ++j) {
    const float best = logits[experts[j]];
    std::fill(scores_.begin(), scores_.end(), -largest_float);
    for (std::size_t e = 0; e < keys_.size(); ++e) {
      const bool far = (best - logits[e]) / std::max(std::abs(logits[e]), best) > routing_.mixer_reach;
      if (!far) scores_[e] = logits[e];
    }
    for (std::size_t before = 0; before < j; ++before) scores_[experts[before]] = -largest_float;
    softmax(scores_.data(), scores_.size(), scores_.data());
    weights[j] = scores_[experts[j]] * routing_.scale;
  }
}

}  // namespace switchyard
