// Norm and gate together, and the table of given and returned routing.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/route.h"
#include "kernels/routing_table.h"
#include "kernels/streaming.h"
#include "kernels_support.h"

namespace switchyard {
namespace {

using test::random_bf16;

/** Any of the ways to score, to limit by groups, to weigh and to bias. */
struct Case {
  RoutingSpec routing;
  std::size_t experts;
  std::vector<float> logit_bias;
  std::vector<float> selection_bias;
  std::vector<float> feedback_bias;
};

Case random_case(std::mt19937_64& random) {
  const auto one_of = [&](auto... values) {
    const std::array all{values...};
    return all[random() % all.size()];
  };
  Case drawn;
  const std::size_t groups = one_of(std::size_t{1}, std::size_t{2}, std::size_t{4});
  drawn.experts = groups * (2 + random() % 12);
  RoutingSpec& routing = drawn.routing;
  routing.score = one_of(RoutingSpec::Score::softmax, RoutingSpec::Score::sigmoid);
  routing.renormalise = random() % 2 == 0;
  routing.scale = one_of(1.0f, 2.5f);
  routing.groups = static_cast<std::uint32_t>(groups);
  routing.groups_chosen = static_cast<std::uint32_t>(1 + random() % groups);
  routing.group_score = one_of(RoutingSpec::GroupScore::max, RoutingSpec::GroupScore::top2);
  routing.masked = one_of(RoutingSpec::Masked::zero, RoutingSpec::Masked::negative_infinity);
  routing.top_k = static_cast<std::uint32_t>(1 + random() % (routing.groups_chosen * (drawn.experts / groups)));
  const auto bias = [&] {
    return random() % 2 == 0 ? std::vector<float>() : test::random_floats(random, drawn.experts, -0.5f, 0.5f);
  };
  drawn.logit_bias = bias();
  drawn.selection_bias = bias();
  drawn.feedback_bias = bias();
  return drawn;
}

/** Rows of which some are NaN, infinite, or so large that their squares overflow. */
std::vector<std::uint16_t> spoiled_rows(std::mt19937_64& random, std::size_t rows, std::size_t hidden) {
  auto values = random_bf16(random, rows * hidden);
  for (const std::uint16_t bits : {0x7f80, 0xff80, 0x7fc0, 0xffff, 0x7f7f}) {
    if (random() % 2 == 0) values[random() % values.size()] = bits;
  }
  return values;
}

TEST(Route, GivesTheBitsOfNormAndGateOneAfterTheOtherInWhateverRanges) {
  std::mt19937_64 random(1);
  for (int turn = 0; turn < 300; ++turn) {
    const Case drawn = random_case(random);
    const std::size_t hidden = 1 + random() % 300;
    const std::size_t rows = 1 + random() % 120;
    const bool bf16 = random() % 2 == 0;
    auto weight = test::random_floats(random, drawn.experts * hidden, -1, 1);
    if (bf16) {
      for (float& value : weight) value = bf16_to_float(float_to_bf16(value));
    }
    const Gate gate(weight.data(), drawn.experts, hidden, drawn.logit_bias, drawn.selection_bias, drawn.routing);
    const auto input = spoiled_rows(random, rows, hidden);
    const auto norm = random_bf16(random, hidden);
    const bool normed = random() % 2 == 0;
    const std::size_t top_k = drawn.routing.top_k;

    std::vector<std::uint16_t> expected_rows = input;
    if (normed) normalize_rows(input.data(), rows, hidden, norm.data(), 1e-6f, expected_rows.data());
    std::vector<std::uint32_t> expected_experts(rows * top_k);
    std::vector<float> expected_weights(rows * top_k);
    for (std::size_t r = 0; r < rows; ++r) {
      gate.route(&expected_rows[r * hidden], 1, drawn.feedback_bias, &expected_experts[r * top_k],
                 &expected_weights[r * top_k]);
    }

    std::vector<std::uint16_t> output(rows * hidden);
    std::vector<std::uint32_t> experts(rows * top_k);
    std::vector<float> weights(rows * top_k);
    const RouteTask task{.rows = input.data(),
                         .row_count = rows,
                         .hidden = hidden,
                         .norm_weight = normed ? norm.data() : nullptr,
                         .epsilon = 1e-6f,
                         .normed = normed ? output.data() : nullptr,
                         .gate = &gate,
                         .bias = drawn.feedback_bias,
                         .experts = experts.data(),
                         .weights = weights.data()};
    std::size_t non_finite = 0;
    for (std::size_t first = 0; first < rows;) {
      const std::size_t count = std::min(rows - first, std::size_t{1} + random() % 60);
      non_finite += route_rows(task, first, count).non_finite;
      first += count;
    }
    EXPECT_EQ(non_finite, count_non_finite(input.data(), rows, hidden));
    if (normed) {
      EXPECT_EQ(output, expected_rows);
    }
    EXPECT_EQ(experts, expected_experts);
    EXPECT_EQ(weights, expected_weights);
  }
}

TEST(Route, GivesTheSameBitsPastTheCaches) {
  std::mt19937_64 random(3);
  const std::size_t hidden = 2080, rows = 520, experts = 5;
  const RoutingSpec routing{.top_k = 2};
  const auto weight = test::random_floats(random, experts * hidden, -1, 1);
  const Gate gate(weight.data(), experts, hidden, {}, {}, routing);
  const auto input = spoiled_rows(random, rows, hidden);
  const auto norm = random_bf16(random, hidden);
  ASSERT_TRUE(worth_streaming(rows * hidden * sizeof(std::uint16_t)));
  std::vector<std::uint16_t> expected_rows(rows * hidden);
  normalize_rows(input.data(), rows, hidden, norm.data(), 1e-6f, expected_rows.data());
  std::vector<std::uint32_t> expected_experts(rows * 2), experts_chosen(rows * 2);
  std::vector<float> expected_weights(rows * 2), weights(rows * 2);
  gate.route(expected_rows.data(), rows, {}, expected_experts.data(), expected_weights.data());

  SlabArena arena(16 << 20);
  const SlabRef slab = arena.allocate((rows + 1) * hidden * sizeof(std::uint16_t));
  // The second memory is of no alignment that a write past the caches could have.
  for (const std::size_t shift : {0, 1}) {
    auto* const output = reinterpret_cast<std::uint16_t*>(slab->data()) + shift;
    const RouteTask task{.rows = input.data(),
                         .row_count = rows,
                         .hidden = hidden,
                         .norm_weight = norm.data(),
                         .epsilon = 1e-6f,
                         .normed = output,
                         .gate = &gate,
                         .bias = {},
                         .experts = experts_chosen.data(),
                         .weights = weights.data()};
    route_rows(task, 0, 100);
    route_rows(task, 100, rows - 100);
    EXPECT_TRUE(std::equal(expected_rows.begin(), expected_rows.end(), output));
    EXPECT_EQ(experts_chosen, expected_experts);
    EXPECT_EQ(weights, expected_weights);
  }
}

/** What a gate's kernels get of a row, in the form of either. */
void expect_parts(RowParts& parts, std::size_t row, const std::uint16_t* expected, std::size_t hidden) {
  constexpr std::size_t part = 64;
  for (std::size_t first = 0; first < hidden; first += part) {
    const std::size_t count = std::min(part, hidden - first);
    std::array<float, part / 2> even, odd;
    std::array<std::uint32_t, part / 2> pairs;
    parts.widen(row, first, count, even.data(), odd.data());
    parts.pair(row, first, count, pairs.data());
    for (std::size_t p = 0; p < (count + 1) / 2; ++p) {
      const std::uint16_t low = expected[first + 2 * p];
      const std::uint16_t high = 2 * p + 1 < count ? expected[first + 2 * p + 1] : 0;
      ASSERT_EQ(pairs[p], std::uint32_t{high} << 16 | low) << first << " + 2 * " << p;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(even[p]), std::uint32_t{low} << 16);
      ASSERT_EQ(std::bit_cast<std::uint32_t>(odd[p]), std::uint32_t{high} << 16);
    }
  }
}

TEST(RowParts, AreTheRowsPlainAndNormalised) {
  std::mt19937_64 random(4);
  for (const std::size_t hidden : {1, 15, 16, 17, 64, 65, 200}) {
    const std::size_t rows = 6;
    const auto input = spoiled_rows(random, rows, hidden);
    const auto norm = random_bf16(random, hidden);
    std::vector<std::uint16_t> expected(rows * hidden), output(rows * hidden);
    normalize_rows(input.data(), rows, hidden, norm.data(), 1e-6f, expected.data());
    PlainRows plain(input.data(), hidden);
    NormalizedRows normalized(hidden, norm.data(), 1e-6f, false);
    normalized.begin(input.data(), rows, output.data());
    for (std::size_t r = 0; r < rows; ++r) {
      expect_parts(plain, r, &input[r * hidden], hidden);
      expect_parts(normalized, r, &expected[r * hidden], hidden);
    }
    EXPECT_EQ(output, expected);
  }
}

TEST(Route, NormalisesRowsWhoseRoutingIsGiven) {
  std::mt19937_64 random(2);
  const std::size_t hidden = 100, rows = 50;
  auto input = random_bf16(random, rows * hidden);
  input[7 * hidden] = 0x7f80;
  const auto norm = random_bf16(random, hidden);
  std::vector<std::uint16_t> expected(input.size()), output(input.size());
  normalize_rows(input.data(), rows, hidden, norm.data(), 1e-6f, expected.data());
  const RouteTask task{.rows = input.data(),
                       .row_count = rows,
                       .hidden = hidden,
                       .norm_weight = norm.data(),
                       .epsilon = 1e-6f,
                       .normed = output.data(),
                       .gate = nullptr,
                       .bias = {},
                       .experts = nullptr,
                       .weights = nullptr};
  EXPECT_EQ(route_rows(task, 0, rows).non_finite, 1u);
  EXPECT_EQ(output, expected);
}

/** Two layers of 4 and 6 experts, top-2, in memory of an arena. */
class RoutingTableTest : public ::testing::Test {
 protected:
  static constexpr std::size_t tokens = 5;
  static constexpr std::size_t entries = tokens * 2 * 2;

  std::optional<RoutingFault> write(std::size_t first, const std::vector<std::uint32_t>& experts,
                                    const std::vector<float>& weights) {
    // At an odd address, as they may lie in a message.
    std::vector<std::uint8_t> expert_bytes(experts.size() * 4 + 1), weight_bytes(weights.size() * 4 + 1);
    std::memcpy(expert_bytes.data() + 1, experts.data(), experts.size() * 4);
    std::memcpy(weight_bytes.data() + 1, weights.data(), weights.size() * 4);
    return table.write(first, std::span(expert_bytes).subspan(1), std::span(weight_bytes).subspan(1));
  }

  SlabArena arena{1 << 20};
  RoutingTable table{arena.allocate(RoutingTable::bytes_for(tokens, 2, 2)), tokens, 2, {4, 6}};
};

TEST_F(RoutingTableTest, GivesBackWhatWasWrittenWholeAndByLayer) {
  std::vector<std::uint32_t> experts(entries);
  std::vector<float> weights(entries);
  for (std::size_t i = 0; i < entries; ++i) experts[i] = static_cast<std::uint32_t>((i % 2) + 2 * ((i / 2) % 2));
  std::iota(weights.begin(), weights.end(), 0.5f);
  EXPECT_FALSE(write(0, {experts.begin(), experts.begin() + 8}, {weights.begin(), weights.begin() + 8}));
  EXPECT_FALSE(write(2, {experts.begin() + 8, experts.end()}, {weights.begin() + 8, weights.end()}));

  std::vector<std::uint8_t> expert_bytes(3 * 4 * 4), weight_bytes(3 * 4 * 4);
  table.read(1, expert_bytes, weight_bytes);
  EXPECT_EQ(std::memcmp(expert_bytes.data(), experts.data() + 4, expert_bytes.size()), 0);
  EXPECT_EQ(std::memcmp(weight_bytes.data(), weights.data() + 4, weight_bytes.size()), 0);

  RoutingTable copy(arena.allocate(RoutingTable::bytes_for(tokens, 2, 2)), tokens, 2, {4, 6});
  for (const std::size_t layer : {0, 1}) {
    // A third slot, of a shared expert, is left alone.
    std::vector<std::uint32_t> of_layer(tokens * 3, 77);
    std::vector<float> weights_of_layer(tokens * 3, 77);
    table.gather(layer, tokens, 3, of_layer.data(), weights_of_layer.data());
    for (std::size_t t = 0; t < tokens; ++t) {
      EXPECT_EQ(of_layer[t * 3], experts[t * 4 + layer * 2]);
      EXPECT_EQ(weights_of_layer[t * 3 + 1], weights[t * 4 + layer * 2 + 1]);
      EXPECT_EQ(of_layer[t * 3 + 2], 77u);
    }
    copy.scatter(layer, tokens, 3, of_layer.data(), weights_of_layer.data());
  }
  std::vector<std::uint8_t> all(entries * 4), all_weights(entries * 4);
  copy.read(0, all, all_weights);
  EXPECT_EQ(std::memcmp(all.data(), experts.data(), all.size()), 0);
  EXPECT_EQ(std::memcmp(all_weights.data(), weights.data(), all_weights.size()), 0);
}

TEST_F(RoutingTableTest, RefusesTheFirstEntryThatIsWrong) {
  const std::vector<std::uint32_t> experts = {0, 3, 5, 4, 1, 2, 0, 1};
  const std::vector<float> weights(8, -0.5f);
  EXPECT_FALSE(write(1, experts, weights));
  auto wrong = experts;
  wrong[5] = 4;
  auto fault = write(1, wrong, weights);
  ASSERT_TRUE(fault);
  EXPECT_EQ(fault->field, RoutingFault::Field::experts);
  EXPECT_EQ(fault->index, 5u);
  EXPECT_EQ(fault->value, 4);
  auto twice = experts;
  twice[3] = 5;
  EXPECT_FALSE(write(1, twice, weights));
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    auto bad_weights = weights;
    bad_weights[6] = bad;
    fault = write(1, experts, bad_weights);
    ASSERT_TRUE(fault);
    EXPECT_EQ(fault->field, RoutingFault::Field::weights);
    EXPECT_EQ(fault->index, 6u);
  }
}

}  // namespace
}  // namespace switchyard
