#include "reference/layer.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "model_support.h"
#include "reference/matrix.h"
#include "reference/routing.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

TensorSource synthetic(uint64_t stream, size_t rows, size_t columns) {
  return {.rows = rows, .columns = columns, .origin = SyntheticTensor{1, stream, 0.5f, 0.0f}};
}

/** A tensor with the given values, which BF16 must hold exactly where they are an expert's. */
TensorSource exact_tensor(const std::vector<float>& values, size_t rows) {
  const size_t columns = values.size() / rows;
  return {.rows = rows, .columns = columns, .origin = FileTensor{test::weight_file(values), 0, StoredDtype::f32, columns}};
}

RoutingSpec top(uint32_t k) {
  RoutingSpec routing;
  routing.top_k = k;
  return routing;
}

TEST(ReferenceRouting, SoftmaxOfLogitsChoosesTheBestAndTiesGoToTheLowerExpert) {
  const std::vector<double> logits{1, 3, 3, 2};
  const double sum = std::exp(1) + 2 * std::exp(3) + std::exp(2);
  const auto choice = choose_experts(logits, {}, top(2), {});
  EXPECT_EQ(choice.experts, (std::vector<uint32_t>{1, 2}));
  EXPECT_NEAR(choice.weights[0], std::exp(3) / sum, 1e-12);
  EXPECT_LE(choice.regret, 0);
}

TEST(ReferenceRouting, BiasChoosesButDoesNotWeigh) {
  RoutingSpec routing = top(2);
  routing.score = RoutingSpec::Score::sigmoid;
  routing.renormalise = true;
  routing.scale = 2.5f;
  const std::vector<double> logits{0, 1, 2};
  const std::vector<float> bias{10, 0, 0};
  const auto choice = choose_experts(logits, bias, routing, {});
  EXPECT_EQ(choice.experts, (std::vector<uint32_t>{0, 2}));
  const double first = 0.5, second = 1 / (1 + std::exp(-2));
  EXPECT_NEAR(choice.weights[0], first / (first + second) * 2.5, 1e-12);
  EXPECT_NEAR(choice.weights[1], second / (first + second) * 2.5, 1e-12);
}

TEST(ReferenceRouting, OnlyChosenGroupsTakePart) {
  RoutingSpec routing = top(2);
  routing.score = RoutingSpec::Score::sigmoid;
  routing.groups = 2;
  routing.groups_chosen = 1;
  const std::vector<double> logits{4, 0, 3, 2};
  EXPECT_EQ(choose_experts(logits, {}, routing, {}).experts, (std::vector<uint32_t>{0, 1}));
  routing.group_score = RoutingSpec::GroupScore::top2;
  EXPECT_EQ(choose_experts(logits, {}, routing, {}).experts, (std::vector<uint32_t>{2, 3}));
}

TEST(ReferenceRouting, RegretSaysByHowMuchAGivenChoiceIsWorse) {
  const std::vector<double> logits{0, 1, 2, 3};
  RoutingSpec routing = top(1);
  routing.score = RoutingSpec::Score::sigmoid;
  const std::vector<uint32_t> given{1};
  const auto choice = choose_experts(logits, {}, routing, given);
  EXPECT_EQ(choice.experts, std::vector<uint32_t>{3});
  EXPECT_NEAR(choice.weights[0], 1 / (1 + std::exp(-1)), 1e-12);
  EXPECT_NEAR(choice.regret, 1 / (1 + std::exp(-3)) - 1 / (1 + std::exp(-1)), 1e-12);
}

TEST(ReferenceRouting, RegretOfGroupsThatAreAllButEquallyGoodIsSmall) {
  RoutingSpec routing = top(2);
  routing.score = RoutingSpec::Score::sigmoid;
  routing.groups = 3;
  routing.groups_chosen = 1;
  routing.group_score = RoutingSpec::GroupScore::top2;
  const std::vector<double> logits{1, 1, 1, 0.99, -1, -1};
  const auto regret = [&](std::span<const float> bias, std::vector<uint32_t> given) {
    const auto choice = choose_experts(logits, bias, routing, given);
    return std::pair{choice.regret, choice.logit_regret};
  };
  const auto sigmoid = [](double value) { return 1 / (1 + std::exp(-value)); };
  const std::vector<float> bias{0, 0, 0, 0, 0.1f, 0.1f};
  EXPECT_LE(regret(bias, {0, 1}).first, 0);
  EXPECT_NEAR(regret(bias, {2, 3}).first, (sigmoid(1) - sigmoid(0.99)) / 2, 1e-12);
  EXPECT_NEAR(regret(bias, {4, 5}).first, sigmoid(1) - sigmoid(-1) - 0.1, 1e-7);
  // Without a bias groups are compared as logits are, too.
  EXPECT_NEAR(regret({}, {2, 3}).second, std::log(2 * sigmoid(1) / (sigmoid(1) + sigmoid(0.99))), 1e-12);
  EXPECT_EQ(regret(bias, {0, 2}).first, std::numeric_limits<double>::infinity()) << "of two groups";
  routing.groups_chosen = 2;
  const std::vector<float> high{0, 0, 0, 0, 0.3f, 0.7f};
  EXPECT_NEAR(regret(high, {5, 2}).first, (sigmoid(1) - sigmoid(0.99)) / 2, 1e-12);
  EXPECT_NEAR(regret(high, {5, 3}).first, sigmoid(1) - sigmoid(0.99), 1e-12);
}

TEST(ReferenceRouting, LogitsDecideAndTellWhereScoresAreTooSmall) {
  const std::vector<double> logits{0, -200, -95, -300};
  for (const auto score : {RoutingSpec::Score::softmax, RoutingSpec::Score::sigmoid}) {
    RoutingSpec routing = top(2);
    routing.score = score;
    EXPECT_EQ(choose_experts(logits, {}, routing, {}).experts, (std::vector<uint32_t>{0, 2}));
    const std::vector<uint32_t> wrong{0, 1};
    const auto choice = choose_experts(logits, {}, routing, wrong);
    EXPECT_LT(choice.regret, 1e-30);
    EXPECT_EQ(choice.logit_regret, 105);
    // Only experts with the same bias can be compared by their logits.
    EXPECT_EQ(choose_experts(logits, std::vector<float>{0, 1, 0, 1}, routing, wrong).logit_regret, -95);
    EXPECT_EQ(choose_experts(logits, std::vector<float>{0, 1, 1, 0}, routing, wrong).logit_regret, 105);
  }
}

TEST(ReferenceRouting, ComparesGroupsBeyondTheRangeOfScores) {
  RoutingSpec routing = top(1);
  routing.groups = 3;
  routing.groups_chosen = 2;
  const std::vector<double> logits{0, -1, -2000, -1000, -900, -5000};
  for (const auto group_score : {RoutingSpec::GroupScore::max, RoutingSpec::GroupScore::top2}) {
    routing.group_score = group_score;
    routing.top_k = 4;
    EXPECT_EQ(choose_experts(logits, {}, routing, {}).experts, (std::vector<uint32_t>{0, 1, 4, 5}));
  }
}

TEST(ReferenceRouting, WeightsKeepTheirRatiosHoweverSmallScoresAre) {
  RoutingSpec routing = top(2);
  routing.renormalise = true;
  const std::vector<uint32_t> given{1, 2};
  for (const auto score : {RoutingSpec::Score::softmax, RoutingSpec::Score::sigmoid}) {
    routing.score = score;
    const auto choice = choose_experts(std::vector<double>{0, -5000, -5001}, {}, routing, given);
    EXPECT_NEAR(choice.weights[0], 1 / (1 + std::exp(-1)), 1e-9);
    EXPECT_NEAR(choice.weights[1], 1 / (1 + std::exp(1)), 1e-9);
  }
}

TEST(ReferenceRouting, NanAmongTheLogitsIsAsIfAllWereEqual) {
  const std::vector<double> logits{1, 5, std::nan(""), 2};
  const auto choice = choose_experts(logits, {}, top(2), {});
  EXPECT_EQ(choice.experts, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(choice.weights, (std::vector<double>{0.25, 0.25}));
}

TEST(ReferenceMatrix, MultipliesAsTheDefinitionSays) {
  ThreadPool pool(2);
  const TensorSource matrix = synthetic(1, 37, 41);
  const auto values = read_doubles(matrix);
  std::vector<double> inputs(3 * 41);
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = std::sin(static_cast<double>(i));
  const auto products = multiply(matrix, inputs.data(), 3, Precision::bf16, pool);
  for (size_t input = 0; input < 3; ++input) {
    for (size_t row = 0; row < 37; ++row) {
      double sum = 0;
      for (size_t i = 0; i < 41; ++i) sum += values[row * 41 + i] * inputs[input * 41 + i];
      EXPECT_NEAR(products[input * 37 + row], sum, 1e-12);
    }
  }
}

/** Two experts of hidden 2 and ffn 1, by hand. */
ReferenceLayer small_layer() {
  ReferenceLayer layer;
  layer.gate = exact_tensor({1, 0, 0, 1}, 2);
  layer.routing = top(2);
  layer.routing.renormalise = true;
  layer.experts.push_back({Activation::gelu, std::nullopt, exact_tensor({1, 0}, 1), exact_tensor({1, 2}, 2)});
  layer.experts.push_back(
      {Activation::swiglu, exact_tensor({0, 1}, 1), exact_tensor({1, 1}, 1), exact_tensor({-1, 0.5}, 2)});
  return layer;
}

TEST(ReferenceLayer, ComputesALayerThatWasComputedByHand) {
  ThreadPool pool(1);
  ReferenceLayer layer = small_layer();
  const std::vector<double> rows{3, 1};
  const auto result = reference_layer(rows, 2, layer, pool);
  const double first = 1 / (1 + std::exp(-2.0)), second = 1 - first;
  const double gelu = 3 * 0.5 * (1 + std::erf(3 / std::sqrt(2.0)));
  const double swiglu = 1 / (1 + std::exp(-1.0)) * 4;
  EXPECT_EQ(result.experts, (std::vector<uint32_t>{0, 1}));
  EXPECT_NEAR(result.rows[0], 3 + first * gelu - second * swiglu, 1e-12);
  EXPECT_NEAR(result.rows[1], 1 + first * 2 * gelu + second * 0.5 * swiglu, 1e-12);
}

TEST(ReferenceLayer, TellsApartWeightsOfAGateThatBf16DoesNot) {
  ThreadPool pool(1);
  ReferenceLayer layer = small_layer();
  layer.routing.top_k = 1;
  layer.gate = exact_tensor({1, 0, 1 + 0x1p-20f, 0}, 2);
  EXPECT_EQ(reference_layer(std::vector<double>{3, 1}, 2, layer, pool).experts, std::vector<uint32_t>{1});
}

TEST(ReferenceLayer, NormalisesBeforeTheGateAndLeavesTheResidualAlone) {
  ThreadPool pool(1);
  ReferenceLayer layer = small_layer();
  layer.norm = exact_tensor({2, 0.5}, 1);
  layer.epsilon = 1;
  const std::vector<double> rows{3, 1};
  const double factor = 1 / std::sqrt((9.0 + 1) / 2 + 1);
  const std::vector<double> normed{3 * factor * 2, 1 * factor * 0.5};
  const auto with_norm = reference_layer(rows, 2, layer, pool);
  layer.norm.reset();
  layer.residual = false;
  const auto without = reference_layer(normed, 2, layer, pool);
  EXPECT_NEAR(with_norm.rows[0], 3 + without.rows[0], 1e-12);
  EXPECT_NEAR(with_norm.rows[1], 1 + without.rows[1], 1e-12);
}

TEST(ReferenceLayer, WeighsTheInputWhereTheModelSaysSo) {
  ThreadPool pool(1);
  ReferenceLayer layer = small_layer();
  layer.routing.top_k = 1;
  layer.routing.renormalise = false;
  layer.routing.weight_on = RoutingSpec::WeightOn::input;
  layer.residual = false;
  const auto result = reference_layer(std::vector<double>{3, 1}, 2, layer, pool);
  const double x = 3 / (1 + std::exp(-2.0));
  EXPECT_NEAR(result.rows[0], x / 2 * (1 + std::erf(x / std::sqrt(2.0))), 1e-12);
}

TEST(ReferenceLayer, OverflowsWhereBf16Does) {
  ThreadPool pool(1);
  const ReferenceLayer layer = small_layer();
  const auto result = reference_layer(std::vector<double>{3, 1, 1e25, 1e25, 1e19, 1e19}, 2, layer, pool);
  for (size_t i = 0; i < 2; ++i) EXPECT_TRUE(std::isfinite(result.rows[i]));
  for (size_t i = 2; i < 4; ++i) EXPECT_FALSE(std::isfinite(result.rows[i]));
  for (size_t i = 4; i < 6; ++i) EXPECT_TRUE(std::isfinite(result.rows[i])) << "large, and within the range";
}

TEST(ReferenceLayer, DoesNotDependOnThreadsOrOnOtherRows) {
  constexpr size_t hidden = 48;
  ReferenceLayer layer;
  layer.gate = synthetic(1, 6, hidden);
  layer.routing = top(2);
  for (uint64_t expert = 0; expert < 6; ++expert) {
    layer.experts.push_back({Activation::swiglu, synthetic(10 + expert, 80, hidden), synthetic(20 + expert, 80, hidden),
                             synthetic(30 + expert, hidden, 80)});
  }
  std::vector<double> rows(20 * hidden);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::cos(static_cast<double>(i * i % 1009));
  ThreadPool one(1), three(3);
  const auto all = reference_layer(rows, hidden, layer, one);
  EXPECT_EQ(reference_layer(rows, hidden, layer, three).rows, all.rows);
  const auto last = reference_layer(std::span(rows).subspan(19 * hidden), hidden, layer, one);
  EXPECT_TRUE(std::equal(last.rows.begin(), last.rows.end(), all.rows.begin() + 19 * hidden));
}

TEST(ReferenceLayer, IsolatedRowsAndOthersAreComputedAsLayersOfTheirOwnExpertsWould) {
  constexpr size_t hidden = 48, row_count = 12;
  const auto layer_of = [](uint64_t stream, size_t ffn) {
    ReferenceLayer layer;
    layer.gate = synthetic(stream, 3, hidden);
    layer.routing = top(2);
    for (uint64_t expert = 0; expert < 3; ++expert) {
      layer.experts.push_back({Activation::gelu, std::nullopt, synthetic(stream + 10 + expert, ffn, hidden),
                               synthetic(stream + 20 + expert, hidden, ffn)});
    }
    return layer;
  };
  const ReferenceLayer common = layer_of(100, 80), isolated = layer_of(200, 24);
  std::vector<uint8_t> own(row_count);
  for (size_t row = 0; row < row_count; ++row) own[row] = row % 3 == 1;
  ReferenceLayer both = common;
  both.experts.insert(both.experts.end(), isolated.experts.begin(), isolated.experts.end());
  both.isolated = {.gate = isolated.gate, .selection_bias = {}, .rows = own};
  std::vector<double> rows(row_count * hidden);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = std::cos(static_cast<double>(i * i % 1009));
  ThreadPool pool(1);
  const auto mixed = reference_layer(rows, hidden, both, pool);
  const ReferenceResult alone[] = {reference_layer(rows, hidden, common, pool), reference_layer(rows, hidden, isolated, pool)};
  for (size_t row = 0; row < row_count; ++row) {
    const ReferenceResult& expected = alone[own[row]];
    EXPECT_TRUE(std::equal(&mixed.rows[row * hidden], &mixed.rows[row * hidden] + hidden, &expected.rows[row * hidden]));
    for (size_t i = 2 * row; i < 2 * row + 2; ++i) EXPECT_EQ(mixed.experts[i], expected.experts[i] + 3 * own[row]);
  }

  // What was chosen as if no row were isolated is wrong for those that are.
  std::vector<uint32_t> given = alone[0].experts;
  both.given = given;
  const auto wrong = reference_layer(rows, hidden, both, pool);
  for (size_t row = 0; row < row_count; ++row) {
    EXPECT_EQ(std::isinf(wrong.regret[row]), own[row] == 1);
    EXPECT_EQ(std::isnan(wrong.weights[2 * row]), own[row] == 1);
  }
}

TEST(ReferenceLayer, RefusesShapesThatDoNotFit) {
  ThreadPool pool(1);
  const std::vector<double> rows{3, 1};
  const auto refuses = [&](auto change) {
    ReferenceLayer layer = small_layer();
    change(layer);
    EXPECT_THROW(reference_layer(rows, 2, layer, pool), Error);
  };
  const std::vector<float> bias(3);
  const std::vector<uint32_t> outside{0, 2}, few{0};
  refuses([](auto& layer) { layer.routing.top_k = 3; });
  refuses([](auto& layer) { layer.routing.groups = 0; });
  refuses([](auto& layer) { layer.gate = exact_tensor({1, 2, 3, 4}, 1); });
  refuses([](auto& layer) { layer.experts[0].down = exact_tensor({1, 2}, 1); });
  refuses([](auto& layer) { layer.experts[1].gate.reset(); });
  refuses([&](auto& layer) { layer.gate_bias = bias; });
  refuses([&](auto& layer) { layer.given = outside; });
  refuses([&](auto& layer) { layer.given = few; });
  refuses([](auto& layer) { layer.experts.clear(); });
  const auto isolate = [](auto& layer, std::span<const uint8_t> of) {
    layer.routing.top_k = 1;
    layer.gate = exact_tensor({1, 0}, 1);
    layer.isolated = {.gate = exact_tensor({0, 1}, 1), .selection_bias = {}, .rows = of};
  };
  const std::vector<uint8_t> one(1), two(2);
  ReferenceLayer isolating = small_layer();
  isolate(isolating, one);
  EXPECT_NO_THROW(reference_layer(rows, 2, isolating, pool));
  refuses([&](auto& layer) { isolate(layer, two); });
  refuses([&](auto& layer) { isolate(layer, one), layer.isolated->selection_bias = bias; });
  refuses([&](auto& layer) { isolate(layer, one), layer.experts.pop_back(); });
}

}  // namespace
}  // namespace switchyard
