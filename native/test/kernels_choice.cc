// The choice of experts where scores run into the ends of float32, against plain sorts of the logits.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "kernels/gate.h"
#include "kernels_support.h"

namespace switchyard {
namespace {

using Score = RoutingSpec::Score;
using GroupScore = RoutingSpec::GroupScore;
using Experts = std::vector<std::uint32_t>;

struct Routed {
  Experts experts;
  std::vector<float> weights;
};

constexpr std::uint16_t one = 0x3f80;

/** Routes a row whose logits are the given ones, times the element. */
Routed route(const std::vector<float>& logits, const RoutingSpec& routing, const std::vector<float>& bias = {},
             std::uint16_t element = one) {
  const Gate gate(logits.data(), logits.size(), 1, {}, bias, routing);
  Routed routed{Experts(routing.top_k), std::vector<float>(routing.top_k)};
  gate.route(&element, 1, {}, routed.experts.data(), routed.weights.data());
  return routed;
}

/** Expert numbers from `first` on, by value from the highest, then by number. */
Experts sorted(const std::vector<double>& values, std::uint32_t first = 0) {
  Experts experts(values.size());
  std::iota(experts.begin(), experts.end(), first);
  std::ranges::stable_sort(experts, [&](std::uint32_t a, std::uint32_t b) { return values[a - first] > values[b - first]; });
  return experts;
}

/** Logits of all sizes, some of them equal. */
std::vector<float> random_logits(std::mt19937_64& random, std::size_t count) {
  const float range = std::ldexp(1.0f, std::uniform_int_distribution(-10, 12)(random));
  std::vector<float> logits = test::random_floats(random, count, -range, range);
  for (float& logit : logits) {
    if (random() % 4 == 0) logit = logits[random() % count];
  }
  return logits;
}

TEST(Choice, IsByLogitsWhereSoftmaxUnderflows) {
  EXPECT_EQ(route({0, -200, -95, -300}, {.top_k = 2}).experts, (Experts{0, 2}));
  EXPECT_EQ(route({0, -200, -95, -300}, {.top_k = 4, .renormalise = true}).experts, (Experts{0, 2, 1, 3}));
}

TEST(Choice, IsByLogitsWhereSigmoidSaturatesOrUnderflows) {
  EXPECT_EQ(route({30, 60, 25, 200}, {.top_k = 3, .score = Score::sigmoid}).experts, (Experts{3, 1, 0}));
  EXPECT_EQ(route({-300, -95, -200, -110}, {.top_k = 3, .score = Score::sigmoid}).experts, (Experts{1, 3, 2}));
}

TEST(Choice, IsAPlainSortOfTheLogits) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 2000; ++round) {
    const std::size_t count = 1 + random() % 40;
    const auto logits = random_logits(random, count);
    Experts expected = sorted({logits.begin(), logits.end()});
    expected.resize(1 + random() % count);
    const RoutingSpec routing{.top_k = static_cast<std::uint32_t>(expected.size()),
                              .score = round % 2 == 0 ? Score::softmax : Score::sigmoid,
                              .renormalise = random() % 2 == 0};
    ASSERT_EQ(route(logits, routing).experts, expected) << "round " << round;
    // A bias that favours nobody changes nothing, whatever it leaves of the scores.
    ASSERT_EQ(route(logits, routing, std::vector<float>(count, 0.5f)).experts, expected) << "round " << round;
  }
}

TEST(Choice, TakesGroupsByTheirBestLogit) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 1000; ++round) {
    const std::size_t groups = 2 + random() % 5, size = 1 + random() % 6, groups_chosen = 1 + random() % groups;
    const auto logits = random_logits(random, groups * size);
    std::vector<double> best(groups);
    for (std::size_t g = 0; g < groups; ++g) best[g] = *std::max_element(&logits[g * size], &logits[g * size] + size);
    const Experts ranked = sorted(best);
    std::vector<double> left(logits.size(), -std::numeric_limits<double>::infinity());
    for (std::size_t i = 0; i < groups_chosen; ++i) std::copy_n(&logits[ranked[i] * size], size, &left[ranked[i] * size]);
    Experts expected = sorted(left);
    expected.resize(1 + random() % (groups_chosen * size));
    const RoutingSpec routing{.top_k = static_cast<std::uint32_t>(expected.size()),
                              .score = round % 2 == 0 ? Score::softmax : Score::sigmoid,
                              .groups = static_cast<std::uint32_t>(groups),
                              .groups_chosen = static_cast<std::uint32_t>(groups_chosen),
                              .masked = round % 3 == 0 ? RoutingSpec::Masked::zero : RoutingSpec::Masked::negative_infinity};
    ASSERT_EQ(route(logits, routing).experts, expected) << "round " << round;
  }
}

TEST(Choice, TakesGroupsOfEqualSumsByTheirLogits) {
  RoutingSpec routing{.top_k = 2, .score = Score::sigmoid, .groups = 3, .groups_chosen = 1, .group_score = GroupScore::top2};
  EXPECT_EQ(route({-200, -300, -95, -200, -95, -199}, routing).experts, (Experts{4, 5}));
  EXPECT_EQ(route({30, 20, 40, 20, 40, 21}, routing).experts, (Experts{4, 5}));
  routing.score = Score::softmax;
  EXPECT_EQ(route({-200, -300, -95, -200, -94, -300, 0, -300}, {.top_k = 4, .groups = 4, .groups_chosen = 2,
                                                                .group_score = GroupScore::top2}).experts,
            (Experts{6, 4, 5, 7}));
}

TEST(Choice, UnderABiasIsByScoreAndBiasThenByLogit) {
  EXPECT_EQ(route({-300, -95, -200, 0}, {.top_k = 3}, {2, 2, 2, 0}).experts, (Experts{1, 2, 0}));
  EXPECT_EQ(route({20, 40, 0, 30}, {.top_k = 3, .score = Score::sigmoid}, {0, 0, 2, 0}).experts, (Experts{2, 1, 3}));
}

TEST(Choice, WeightsKeepTheirRatiosWhereScoresUnderflow) {
  const double second = std::exp(-1.0);
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const RoutingSpec routing{.top_k = 2, .score = score, .renormalise = true};
    const Routed routed = route({200, -200, -201, -400}, routing, {0, 2, 2, 0});
    ASSERT_EQ(routed.experts, (Experts{1, 2}));
    EXPECT_NEAR(routed.weights[0], 1 / (1 + second), 1e-6);
    EXPECT_NEAR(routed.weights[1], second / (1 + second), 1e-6);
  }
}

TEST(Choice, BoundsLogitsBeforeAllElse) {
  const Routed routed = route({1, 3, -2, 40}, {.top_k = 4, .score = Score::sigmoid, .logit_cap = 2});
  ASSERT_EQ(routed.experts, (Experts{3, 1, 0, 2}));
  const float logits[] = {40, 3, 1, -2};
  for (std::size_t j = 0; j < 4; ++j) {
    EXPECT_NEAR(routed.weights[j], 1 / (1 + std::exp(-2 * std::tanh(logits[j] / 2))), 1e-6) << j;
  }
}

TEST(Choice, DividesByTheRootOfTheSquares) {
  const Routed routed = route({2, 1, 0}, {.top_k = 2, .renormalise = true, .scale = 3, .norm_power = 2});
  const double root = std::sqrt(1 + std::exp(-2.0));
  EXPECT_NEAR(routed.weights[0], 3 / root, 1e-6);
  EXPECT_NEAR(routed.weights[1], 3 * std::exp(-1.0) / root, 1e-6);
}

TEST(Choice, OfASparseMixerWeighsAgainstThoseThatAreNear) {
  // 9.9 is near 10, 9 is not; when 10 is gone, 9.9 stands alone.
  const Routed routed = route({9.9f, 10, 9, -10}, {.top_k = 2, .score = Score::sparse_mixer, .mixer_reach = 0.02f});
  ASSERT_EQ(routed.experts, (Experts{1, 0}));
  EXPECT_NEAR(routed.weights[0], 1 / (1 + std::exp(-0.1)), 1e-6);
  EXPECT_EQ(routed.weights[1], 1);
}

TEST(Choice, WithNanAmongTheLogitsIsThatOfEqualLogits) {
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    for (const std::uint32_t groups : {1u, 3u}) {
      const RoutingSpec routing{.top_k = 3, .score = score, .renormalise = true, .scale = 2.5f, .groups = groups,
                                .groups_chosen = groups == 1 ? 1u : 2u, .group_score = GroupScore::top2};
      const std::vector<float> weights = {1, -1, 2, 5, 0, 3, 7, -4, 6};
      const Routed equal = route(std::vector<float>(9, 0.0f), routing);
      EXPECT_EQ(equal.experts, (Experts{0, 1, 2}));
      for (const std::uint16_t element : {0x7fc0, 0xffc0, 0x7f81, 0x7f80, 0xff80}) {
        const Routed routed = route(weights, routing, {}, element);
        EXPECT_EQ(routed.experts, equal.experts) << element;
        EXPECT_EQ(routed.weights, equal.weights) << element;
      }
    }
  }
}

TEST(Choice, OfLogitsThatOverflowIsByTheirSign) {
  const RoutingSpec routing{.top_k = 3, .renormalise = true};
  const Routed routed = route({1, -3e38f, 3e38f, 2, 3e38f}, routing, {}, float_to_bf16(1000));
  EXPECT_EQ(routed.experts, (Experts{2, 4, 3}));
  EXPECT_EQ(routed.weights, (std::vector<float>{0.5f, 0.5f, 0}));
}

TEST(Choice, GivesFiniteWeightsToRowsOfEveryKind) {
  std::mt19937_64 random(3);
  const std::size_t hidden = 70;
  const auto weight = test::random_floats(random, 24 * hidden, -1, 1);
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const Gate gate(weight.data(), 24, hidden, {}, {}, {.top_k = 6, .score = score, .renormalise = true});
    for (const std::uint16_t value : {0x0000, 0x0001, 0x7f7f, 0x7f80, 0xff80, 0x7fc0, 0xffff}) {
      for (const std::size_t count : {std::size_t{1}, hidden}) {
        std::vector<std::uint16_t> row(hidden, one);
        std::fill_n(row.begin(), count, value);
        Routed routed{Experts(6), std::vector<float>(6)};
        gate.route(row.data(), 1, {}, routed.experts.data(), routed.weights.data());
        EXPECT_EQ(std::set(routed.experts.begin(), routed.experts.end()).size(), 6u);
        for (const float entry : routed.weights) EXPECT_TRUE(std::isfinite(entry)) << value;
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
