// Routing against a naive float64 reference, and the rules of choice on cases made by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <thread>

#include "kernels/gate.h"
#include "kernels_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

using test::random_bf16;
using test::random_floats;
using test::widened;

struct Case {
  std::string name;
  std::size_t experts;
  std::size_t hidden;
  RoutingSpec routing;
  bool logit_bias = false;
  bool selection_bias = false;
  /** Weights that BF16 does not hold. */
  bool full_precision = false;
};

void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

struct Routed {
  std::vector<std::uint32_t> experts;
  std::vector<float> weights;
  bool operator==(const Routed&) const = default;
};

Routed route(const Gate& gate, const std::vector<std::uint16_t>& rows, std::span<const float> bias = {},
             std::size_t range = 100000) {
  const std::size_t row_count = rows.size() / gate.hidden();
  const std::size_t top_k = gate.routing().top_k;
  Routed routed{std::vector<std::uint32_t>(row_count * top_k), std::vector<float>(row_count * top_k)};
  for (std::size_t first = 0; first < row_count; first += range) {
    gate.route(&rows[first * gate.hidden()], std::min(range, row_count - first), bias, &routed.experts[first * top_k],
               &routed.weights[first * top_k]);
  }
  return routed;
}

struct Model {
  std::vector<float> weight;
  std::vector<float> logit_bias;
  std::vector<float> selection_bias;
  std::vector<float> feedback;
};

Model make_model(std::mt19937_64& random, const Case& test_case) {
  Model model;
  const float scale = 3 / std::sqrt(static_cast<float>(test_case.hidden));
  const std::size_t elements = test_case.experts * test_case.hidden;
  model.weight = test_case.full_precision ? random_floats(random, elements, -scale, scale)
                                          : widened(random_bf16(random, elements, scale));
  if (test_case.logit_bias) model.logit_bias = random_floats(random, test_case.experts, -1, 1);
  if (test_case.selection_bias) {
    model.selection_bias = random_floats(random, test_case.experts, -0.3f, 0.3f);
    model.feedback = random_floats(random, test_case.experts, -0.1f, 0.1f);
  }
  return model;
}

struct Scores {
  std::vector<double> score;
  /** What the choice is made by, groups already masked. */
  std::vector<double> selection;
};

std::vector<double> reference_scores(const Case& test_case, const Model& model, const std::uint16_t* row) {
  std::vector<double> scores(test_case.experts);
  for (std::size_t e = 0; e < test_case.experts; ++e) {
    if (test_case.logit_bias) scores[e] = model.logit_bias[e];
    for (std::size_t i = 0; i < test_case.hidden; ++i) {
      scores[e] += static_cast<double>(bf16_to_float(row[i])) * model.weight[e * test_case.hidden + i];
    }
  }
  if (test_case.routing.score == RoutingSpec::Score::sigmoid) {
    for (double& score : scores) score = 1 / (1 + std::exp(-score));
    return scores;
  }
  const double largest = *std::ranges::max_element(scores);
  for (double& score : scores) score = std::exp(score - largest);
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& score : scores) score /= sum;
  return scores;
}

/** Selection scores with masked groups; nothing if groups are so close that float32 may choose others. */
std::vector<double> reference_selection(const Case& test_case, const Model& model,
                                        const std::vector<double>& scores) {
  const RoutingSpec& routing = test_case.routing;
  std::vector<double> selection = scores;
  for (std::size_t e = 0; e < selection.size(); ++e) {
    if (test_case.selection_bias) selection[e] += static_cast<double>(model.selection_bias[e]) + model.feedback[e];
  }
  if (routing.groups == 1) return selection;
  const std::size_t size = selection.size() / routing.groups;
  std::vector<std::pair<double, std::size_t>> ranked;
  for (std::size_t g = 0; g < routing.groups; ++g) {
    std::vector<double> members(selection.begin() + static_cast<std::ptrdiff_t>(g * size),
                                selection.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::ranges::sort(members, std::greater<>());
    const bool top2 = routing.group_score == RoutingSpec::GroupScore::top2;
    ranked.emplace_back(top2 ? members[0] + members[1] : members[0], g);
  }
  std::ranges::sort(ranked, std::greater<>());
  if (ranked[routing.groups_chosen - 1].first - ranked[routing.groups_chosen].first < 1e-5) return {};
  const double masked =
      routing.masked == RoutingSpec::Masked::zero ? 0 : -std::numeric_limits<double>::infinity();
  for (std::size_t i = routing.groups_chosen; i < ranked.size(); ++i) {
    for (std::size_t e = 0; e < size; ++e) selection[ranked[i].second * size + e] = masked;
  }
  return selection;
}

void check_row(const Case& test_case, const Model& model, const std::uint16_t* row, const std::uint32_t* experts,
               const float* weights) {
  const RoutingSpec& routing = test_case.routing;
  const std::size_t top_k = routing.top_k;
  const std::vector<double> scores = reference_scores(test_case, model, row);
  const std::vector<double> selection = reference_selection(test_case, model, scores);
  if (selection.empty()) return;
  const std::set<std::uint32_t> chosen(experts, experts + top_k);
  ASSERT_EQ(chosen.size(), top_k);
  ASSERT_LT(*chosen.rbegin(), test_case.experts);
  for (std::size_t j = 1; j < top_k; ++j) ASSERT_GT(selection[experts[j - 1]], selection[experts[j]] - 1e-5);
  for (std::uint32_t e = 0; e < test_case.experts; ++e) {
    if (chosen.contains(e)) continue;
    ASSERT_LT(selection[e], selection[experts[top_k - 1]] + 1e-5) << "expert " << e;
  }
  double sum = 0;
  for (const std::uint32_t e : chosen) sum += scores[e];
  for (std::size_t j = 0; j < top_k; ++j) {
    const double expected = scores[experts[j]] / (routing.renormalise ? sum : 1) * routing.scale;
    ASSERT_NEAR(weights[j], expected, expected * 3e-5 + 1e-9) << "position " << j;
  }
}

class GateCases : public testing::TestWithParam<Case> {};

TEST_P(GateCases, AgreesWithFloat64) {
  const Case& test_case = GetParam();
  std::mt19937_64 random(1);
  const Model model = make_model(random, test_case);
  const Gate gate(model.weight.data(), test_case.experts, test_case.hidden, model.logit_bias, model.selection_bias,
                  test_case.routing);
  const std::size_t rows = 53;
  const auto input = random_bf16(random, rows * test_case.hidden, 2);
  const Routed routed = route(gate, input, model.feedback);
  for (std::size_t t = 0; t < rows; ++t) {
    SCOPED_TRACE("row " + std::to_string(t));
    check_row(test_case, model, &input[t * test_case.hidden], &routed.experts[t * test_case.routing.top_k],
              &routed.weights[t * test_case.routing.top_k]);
    if (HasFatalFailure()) return;
  }
}

TEST_P(GateCases, IdsOfTokensChooseAndScoresWeigh) {
  const Case& test_case = GetParam();
  std::mt19937_64 random(8);
  const Model model = make_model(random, test_case);
  const std::size_t rows = 77, top_k = test_case.routing.top_k;
  const auto input = random_bf16(random, rows * test_case.hidden);
  const auto gate = [&](std::span<const float> selection_bias, const GateExtras& extras) {
    return Gate(model.weight.data(), test_case.experts, test_case.hidden, model.logit_bias, selection_bias, test_case.routing, {}, extras);
  };
  const Routed chosen = route(gate(model.selection_bias, {}), input);
  // Token i goes, by its id, where row i would go by its scores.
  const Gate by_ids = gate({}, {.token_experts = chosen.experts});
  EXPECT_EQ(by_ids.vocabulary(), rows);
  std::vector<std::uint32_t> ids(rows);
  std::iota(ids.begin(), ids.end(), 0u);
  Routed routed{std::vector<std::uint32_t>(rows * top_k), std::vector<float>(rows * top_k)};
  by_ids.route(input.data(), rows, {}, routed.experts.data(), routed.weights.data(), ids.data());
  EXPECT_EQ(routed, chosen);
}

TEST_P(GateCases, IsolatedRowsAndOthersAreRoutedAsGatesOfTheirOwnExpertsAloneWould) {
  const Case& test_case = GetParam();
  std::mt19937_64 random(9);
  const Model common = make_model(random, test_case), isolated = make_model(random, test_case);
  const std::size_t rows = 77, top_k = test_case.routing.top_k, experts = test_case.experts;
  auto input = random_bf16(random, rows * test_case.hidden, 2);
  input[30 * test_case.hidden] = input[31 * test_case.hidden] = 0x7fc0;
  const auto joined = [](std::vector<float> first, const std::vector<float>& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  const std::vector<float> shared_weights = {0.5f}, shared_gate = random_floats(random, test_case.hidden, -1, 1);
  const std::vector<std::uint32_t> own_ids = {0, 7, 4'000'000'000};
  const std::vector<float> weight = joined(common.weight, isolated.weight);
  const Gate gate(weight.data(), 2 * experts, test_case.hidden, joined(common.logit_bias, isolated.logit_bias),
                  joined(common.selection_bias, isolated.selection_bias), test_case.routing,
                  {.weights = shared_weights, .gate = shared_gate.data()}, {.isolated = {.experts = experts, .token_ids = own_ids}});
  EXPECT_TRUE(gate.isolates());
  std::vector<std::uint32_t> ids(rows);
  for (std::size_t t = 0; t < rows; ++t) ids[t] = t % 3 == 1 ? own_ids[t % 9 / 3] : static_cast<std::uint32_t>(t + 8);
  const auto expected = [&](const Model& model, const std::vector<float>& bias) {
    return route(Gate(model.weight.data(), experts, test_case.hidden, model.logit_bias, model.selection_bias, test_case.routing), input, bias);
  };
  const Routed of_common = expected(common, common.feedback), of_isolated = expected(isolated, isolated.feedback);
  const auto check = [&](const std::uint32_t* given_ids) {
    std::vector<std::uint32_t> chosen(rows * gate.slots());
    std::vector<float> weights(rows * gate.slots());
    gate.route(input.data(), rows, joined(common.feedback, isolated.feedback), chosen.data(), weights.data(), given_ids);
    for (std::size_t t = 0; t < rows; ++t) {
      SCOPED_TRACE("row " + std::to_string(t));
      const bool own = given_ids != nullptr && t % 3 == 1;
      for (std::size_t j = 0; j < top_k; ++j) {
        ASSERT_EQ(chosen[t * gate.slots() + j], (own ? of_isolated : of_common).experts[t * top_k + j] + (own ? experts : 0));
        ASSERT_EQ(weights[t * gate.slots() + j], (own ? of_isolated : of_common).weights[t * top_k + j]);
      }
      ASSERT_EQ(chosen[t * gate.slots() + top_k], 2 * experts);
    }
  };
  check(ids.data());
  check(nullptr);
}

TEST(Gate, RefusesIsolatedExpertsThatItCannotRoute) {
  const std::vector<float> weight(8 * 4);
  const std::vector<std::uint32_t> ids = {1, 2}, unsorted = {2, 1}, table = {0, 1};
  const auto refused = [&](const GateExtras& extras, std::uint32_t top_k = 2) {
    EXPECT_THROW(Gate(weight.data(), 8, 4, {}, {}, {.top_k = top_k}, {}, extras), Error);
  };
  refused({.isolated = {.experts = 8, .token_ids = ids}});
  refused({.isolated = {.experts = 4, .token_ids = unsorted}});
  refused({.token_experts = table, .isolated = {.experts = 4, .token_ids = ids}});
  refused({.isolated = {.experts = 2, .token_ids = ids}}, 3);
  refused({.isolated = {.experts = 6, .token_ids = ids}}, 3);
}

TEST_P(GateCases, RowsHaveTheSameBitsInAnySplitAndBesideAnyRows) {
  const Case& test_case = GetParam();
  std::mt19937_64 random(2);
  const Model model = make_model(random, test_case);
  const Gate gate(model.weight.data(), test_case.experts, test_case.hidden, model.logit_bias, model.selection_bias,
                  test_case.routing);
  const std::size_t rows = 101;
  const auto input = random_bf16(random, rows * test_case.hidden, 2);
  const Routed whole = route(gate, input, model.feedback);
  for (const std::size_t range : {1, 5, 47, 64}) EXPECT_EQ(route(gate, input, model.feedback, range), whole) << range;

  auto beside_nan = input;
  for (std::size_t t = 1; t < rows; t += 2) {
    std::fill_n(&beside_nan[t * test_case.hidden], test_case.hidden, std::uint16_t{0x7fc0});
  }
  const Routed mixed = route(gate, beside_nan, model.feedback);
  const std::size_t top_k = test_case.routing.top_k;
  for (std::size_t slot = 0; slot < rows * top_k; ++slot) {
    if (slot / top_k % 2 != 0) continue;
    EXPECT_EQ(mixed.experts[slot], whole.experts[slot]);
    EXPECT_EQ(mixed.weights[slot], whole.weights[slot]);
  }
}

using Score = RoutingSpec::Score;
using GroupScore = RoutingSpec::GroupScore;
using Masked = RoutingSpec::Masked;

INSTANTIATE_TEST_SUITE_P(
    Families, GateCases,
    testing::Values(
        Case{"Mixtral", 8, 256, {.top_k = 2, .renormalise = true}},
        Case{"Qwen3", 128, 512, {.top_k = 8, .renormalise = true}},
        Case{"Olmo", 64, 300, {.top_k = 8}},
        Case{"DeepSeekV2", 160, 257, {.top_k = 6, .scale = 16, .groups = 8, .groups_chosen = 3}},
        Case{"DeepSeekV3", 256, 640, {.top_k = 8, .score = Score::sigmoid, .renormalise = true, .scale = 2.5f,
                                      .groups = 8, .groups_chosen = 4, .group_score = GroupScore::top2},
             false, true},
        Case{"MaskedZero", 256, 640, {.top_k = 8, .score = Score::sigmoid, .renormalise = true, .scale = 2.5f,
                                      .groups = 8, .groups_chosen = 4, .group_score = GroupScore::top2,
                                      .masked = Masked::zero},
             false, true},
        Case{"GptOss", 32, 288, {.top_k = 4, .renormalise = true}, true},
        Case{"Llama4", 16, 1024, {.top_k = 1, .score = Score::sigmoid, .weight_on = RoutingSpec::WeightOn::input}},
        Case{"Biased", 48, 96, {.top_k = 5, .renormalise = true}, true, true},
        Case{"AllExperts", 11, 33, {.top_k = 11}},
        Case{"Many", 512, 129, {.top_k = 16, .renormalise = true}},
        Case{"OneExpert", 1, 16, {}},
        Case{"OneElement", 9, 1, {.top_k = 3}},
        Case{"Wide", 24, 4097, {.top_k = 2}},
        Case{"FloatWeights", 40, 512, {.top_k = 4, .renormalise = true}, true, true, true},
        Case{"FloatWeightsWide", 24, 4097, {.top_k = 2}, false, false, true}),
    [](const testing::TestParamInfo<Case>& info) { return info.param.name; });

/** One element per row, so that a row's logits are its value times the experts' weights: exact by hand. */
Gate gate_of(const std::vector<float>& weights, const RoutingSpec& routing,
             std::span<const float> selection_bias = {}) {
  return Gate(weights.data(), weights.size(), 1, {}, selection_bias, routing);
}

const std::vector<std::uint16_t> one_row = {0x3f80};

TEST(GateChoice, TiesGoToTheLowerExpert) {
  const Gate gate = gate_of({1, 2, 0, 2, 1, 2, 1}, {.top_k = 5});
  EXPECT_EQ(route(gate, one_row).experts, (std::vector<std::uint32_t>{1, 3, 5, 0, 4}));
  const Gate equal = gate_of(std::vector<float>(40, -1.5f), {.top_k = 3});
  EXPECT_EQ(route(equal, one_row).experts, (std::vector<std::uint32_t>{0, 1, 2}));
}

TEST(GateChoice, SeesWeightsThatDifferByLessThanBf16Tells) {
  const float more = 1 + 0x1p-20f;
  EXPECT_EQ(route(gate_of({0, 1, more}, {.top_k = 1}), one_row).experts[0], 2u);
  EXPECT_EQ(route(gate_of({0, more, 1}, {.top_k = 1}), one_row).experts[0], 1u);
}

TEST(GateChoice, GivesBf16WeightsTheSameBitsBesideWeightsOfFullPrecision) {
  std::mt19937_64 random(6);
  const std::size_t experts = 20, hidden = 601, top_k = 8, rows = 50;
  const RoutingSpec routing{.top_k = top_k, .score = Score::sigmoid};
  auto weight = widened(random_bf16(random, experts * hidden, 0.1f));
  const auto input = random_bf16(random, rows * hidden);
  // The last expert, whose weights change, is never chosen.
  std::vector<float> selection_bias(experts);
  selection_bias.back() = -10;
  const Routed pairs = route(Gate(weight.data(), experts, hidden, {}, selection_bias, routing), input);
  weight.back() += 0x1p-30f;
  const Routed floats = route(Gate(weight.data(), experts, hidden, {}, selection_bias, routing), input);
  EXPECT_EQ(floats, pairs);
}

TEST(GateChoice, TiesOfGroupsGoToTheLowerGroup) {
  const Gate gate = gate_of({0, 1, 1, 0, 1, 0}, {.top_k = 2, .groups = 3, .groups_chosen = 1});
  EXPECT_EQ(route(gate, one_row).experts, (std::vector<std::uint32_t>{1, 0}));
}

TEST(GateChoice, BiasesChooseButDoNotWeigh) {
  const std::vector<float> selection_bias = {0, 0, 0, 0.5f};
  const Gate gate = gate_of({0, 0, 0, 0}, {.top_k = 2}, selection_bias);
  const std::vector<float> feedback = {0, 0, 0.25f, 0};
  const Routed routed = route(gate, one_row, feedback);
  EXPECT_EQ(routed.experts, (std::vector<std::uint32_t>{3, 2}));
  EXPECT_EQ(routed.weights, (std::vector<float>{0.25f, 0.25f}));
}

TEST(GateChoice, AMaskedGroupIsZeroOrNeverChosen) {
  // Scores are 1/2 each; the bias makes group 0 best by its first expert while its second one is below zero.
  const std::vector<float> selection_bias = {2, -3, 0, 0};
  RoutingSpec routing{.top_k = 2, .score = Score::sigmoid, .groups = 2, .groups_chosen = 1};
  routing.masked = Masked::negative_infinity;
  EXPECT_EQ(route(gate_of({0, 0, 0, 0}, routing, selection_bias), one_row).experts,
            (std::vector<std::uint32_t>{0, 1}));
  routing.masked = Masked::zero;
  EXPECT_EQ(route(gate_of({0, 0, 0, 0}, routing, selection_bias), one_row).experts,
            (std::vector<std::uint32_t>{0, 2}));
}

TEST(GateChoice, GroupScoreIsTheBestExpertOrTheTwoBest) {
  // Group 0 holds the best expert, group 1 the best two.
  const std::vector<float> weights = {2, -4, 1, 1};
  RoutingSpec routing{.top_k = 1, .score = Score::sigmoid, .groups = 2, .groups_chosen = 1};
  EXPECT_EQ(route(gate_of(weights, routing), one_row).experts[0], 0u);
  routing.group_score = GroupScore::top2;
  EXPECT_EQ(route(gate_of(weights, routing), one_row).experts[0], 2u);
}

TEST(GateChoice, ManyThreadsMayRouteWithOneGate) {
  std::mt19937_64 random(4);
  const std::size_t hidden = 128, rows = 256, top_k = 4;
  const auto weight = widened(random_bf16(random, 32 * hidden));
  const Gate gate(weight.data(), 32, hidden, {}, {}, {.top_k = top_k, .renormalise = true});
  const auto input = random_bf16(random, rows * hidden);
  const Routed whole = route(gate, input);
  Routed shared{std::vector<std::uint32_t>(rows * top_k), std::vector<float>(rows * top_k)};
  std::vector<std::thread> threads;
  for (std::size_t first = 0; first < rows; first += rows / 4) {
    threads.emplace_back([&, first] {
      gate.route(&input[first * hidden], rows / 4, {}, &shared.experts[first * top_k], &shared.weights[first * top_k]);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(shared, whole);
}

TEST(GateChoice, AnExpertThatATokenHasTwiceWeighsTwice) {
  const std::vector<float> weights = {1, 2, 3};
  const std::vector<std::uint32_t> token_experts = {0, 1, 2, 2};
  const RoutingSpec routing{.top_k = 2, .renormalise = true};
  const Gate gate(weights.data(), 3, 1, {}, {}, routing, {}, {.token_experts = token_experts});
  const std::uint32_t id = 1;
  Routed routed{std::vector<std::uint32_t>(2), std::vector<float>(2)};
  gate.route(one_row.data(), 1, {}, routed.experts.data(), routed.weights.data(), &id);
  EXPECT_EQ(routed, (Routed{{2, 2}, {0.5f, 0.5f}}));
}

TEST(GateChoice, SmallScoresKeepTheirRatios) {
  // The root of softplus(-87.5) is 1e-19, and e^-87.5 no normal float.
  const std::vector<float> weights = {-86.5f, -87.5f};
  const std::vector<std::uint32_t> token_experts = {0, 1};
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    const RoutingSpec routing{.top_k = 2, .score = score, .renormalise = true};
    const Gate gate(weights.data(), 2, 1, {}, {}, routing, {}, {.token_experts = token_experts});
    const std::uint32_t id = 0;
    Routed routed{std::vector<std::uint32_t>(2), std::vector<float>(2)};
    gate.route(one_row.data(), 1, {}, routed.experts.data(), routed.weights.data(), &id);
    const double ratio = std::exp(score == Score::sqrt_softplus ? -0.5 : -1.0);
    EXPECT_NEAR(routed.weights[0], 1 / (1 + ratio), 1e-6);
    EXPECT_NEAR(routed.weights[1], ratio / (1 + ratio), 1e-6);
    EXPECT_THROW(gate.route(one_row.data(), 1, {}, routed.experts.data(), routed.weights.data()), Error);
  }
}

TEST(GateChoice, CountsRowsPerExpert) {
  std::vector<std::uint32_t> counts(4);
  count_experts(std::vector<std::uint32_t>{0, 3, 3, 1, 0, 3}, counts);
  EXPECT_EQ(counts, (std::vector<std::uint32_t>{2, 1, 0, 3}));
}

void expect_refused(const std::string& message, const RoutingSpec& routing, std::span<const float> logit_bias = {},
                    std::span<const float> selection_bias = {}, const GateExtras& extras = {}) {
  const std::vector<float> weight(6 * 4);
  try {
    const Gate gate(weight.data(), 6, 4, logit_bias, selection_bias, routing, {}, extras);
    FAIL() << "no error, expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    EXPECT_EQ(std::string(error.what()), message);
  }
}

TEST(GateErrors, NameTheFieldTheValueAndWhatIsAllowed) {
  expect_refused("routing.topK is 7; allowed: 1 to 6, the number of experts", {.top_k = 7});
  expect_refused("routing.topK is 0; allowed: 1 to 6, the number of experts", {.top_k = 0});
  expect_refused("routing.groups is 4; allowed: a divisor of the number of experts, 6", {.groups = 4});
  expect_refused("routing.groupsChosen is 4; allowed: 1 to 3", {.groups = 3, .groups_chosen = 4});
  expect_refused("routing.groupsChosen is 1; allowed: groups with topK experts among them, 3",
                 {.top_k = 3, .groups = 3, .groups_chosen = 1});
  expect_refused("routing.groupScore is top2; allowed: max, for groups of one expert",
                 {.groups = 6, .groups_chosen = 2, .group_score = GroupScore::top2});
  expect_refused("logitBias.length is 2; allowed: 6", {}, std::vector<float>(2));
  std::vector<float> bias(6);
  bias[4] = std::numeric_limits<float>::infinity();
  expect_refused("selectionBias is inf; allowed: finite numbers", {}, {}, bias);
  bias[4] = -std::numeric_limits<float>::infinity();
  expect_refused("logitBias is -inf; allowed: finite numbers", {}, bias);
  const std::vector<std::uint32_t> table = {0, 5, 6};
  expect_refused("tokenExperts is 6; allowed: 0 to 5", {}, {}, {}, {.token_experts = table});
  expect_refused("tokenExperts.length is 3; allowed: a multiple of topK, 2", {.top_k = 2}, {}, {}, {.token_experts = table});
}

}  // namespace
}  // namespace switchyard
