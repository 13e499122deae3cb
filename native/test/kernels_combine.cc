// Combining: exact, partial, and the worker's reduction.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <memory>
#include <numeric>

#include "kernels/combine.h"
#include "kernels/streaming.h"
#include "kernels_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

using test::random_bf16;
using test::random_floats;

/** Result rows for every slot, spread over parts in random order as workers would return them. */
struct Scattered {
  std::vector<std::vector<std::uint32_t>> targets;
  std::vector<std::vector<std::uint16_t>> rows;

  std::vector<CombinePart> parts() const {
    std::vector<CombinePart> views;
    for (std::size_t p = 0; p < targets.size(); ++p) views.push_back({rows[p].data(), targets[p]});
    return views;
  }
};

Scattered scatter(std::mt19937_64& random, const std::vector<std::uint16_t>& by_slot, std::size_t slots,
                  std::size_t hidden, std::size_t part_count) {
  std::vector<std::uint32_t> order(slots);
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::shuffle(order, random);
  Scattered scattered{.targets = std::vector<std::vector<std::uint32_t>>(part_count),
                      .rows = std::vector<std::vector<std::uint16_t>>(part_count)};
  for (const std::uint32_t slot : order) {
    const std::size_t part = random() % part_count;
    scattered.targets[part].push_back(slot);
    const auto row = by_slot.begin() + static_cast<std::ptrdiff_t>(slot * hidden);
    scattered.rows[part].insert(scattered.rows[part].end(), row, row + static_cast<std::ptrdiff_t>(hidden));
  }
  return scattered;
}

std::vector<std::uint16_t> combine(const CombinePlan& plan, std::size_t hidden, const std::uint16_t* residual,
                                   std::size_t range = 1000) {
  std::vector<std::uint16_t> output(plan.row_count() * hidden);
  for (std::size_t first = 0; first < plan.row_count(); first += range) {
    combine_rows(plan, first, std::min(range, plan.row_count() - first), hidden, residual, output.data());
  }
  return output;
}

/** The float32 sum of the definition, one scalar operation after the other. */
std::uint16_t expected_value(std::span<const std::uint16_t> terms, std::span<const float> weights,
                             const std::uint16_t* residual) {
  float sum = 0;
  for (std::size_t j = 0; j < terms.size(); ++j) sum = std::fma(bf16_to_float(terms[j]), weights[j], sum);
  return float_to_bf16(residual == nullptr ? sum : sum + bf16_to_float(*residual));
}

TEST(CombineExact, GivesTheDefinedBitsForEverySizeAndEverySplit) {
  std::mt19937_64 random(1);
  for (const std::size_t top_k : {1, 2, 3, 8, 11}) {
    for (const std::size_t hidden : {1, 16, 33, 64, 257, 1024}) {
      const std::size_t rows = 23;
      const auto by_slot = random_bf16(random, rows * top_k * hidden);
      const auto weights = random_floats(random, rows * top_k, 0, 1);
      const auto residual = random_bf16(random, rows * hidden);
      const Scattered scattered = scatter(random, by_slot, rows * top_k, hidden, 3);
      const CombinePlan plan = plan_combine_exact(scattered.parts(), rows, top_k, hidden, weights);
      const auto with_residual = combine(plan, hidden, residual.data());
      const auto without = combine(plan, hidden, nullptr);
      EXPECT_EQ(with_residual, combine(plan, hidden, residual.data(), 5)) << "another split into ranges";
      for (std::size_t t = 0; t < rows; ++t) {
        for (std::size_t i = 0; i < hidden; ++i) {
          std::vector<std::uint16_t> terms;
          for (std::size_t j = 0; j < top_k; ++j) terms.push_back(by_slot[(t * top_k + j) * hidden + i]);
          const std::span row_weights(&weights[t * top_k], top_k);
          const std::size_t at = t * hidden + i;
          ASSERT_EQ(with_residual[at], expected_value(terms, row_weights, &residual[at])) << "k " << top_k;
          ASSERT_EQ(without[at], expected_value(terms, row_weights, nullptr)) << "k " << top_k;
        }
      }
    }
  }
}

TEST(CombineExact, AgreesWithFloat64) {
  std::mt19937_64 random(2);
  const std::size_t rows = 40, hidden = 100, top_k = 8;
  const auto by_slot = random_bf16(random, rows * top_k * hidden);
  const auto weights = random_floats(random, rows * top_k, 0, 1);
  const auto residual = random_bf16(random, rows * hidden);
  const Scattered scattered = scatter(random, by_slot, rows * top_k, hidden, 4);
  const auto output =
      combine(plan_combine_exact(scattered.parts(), rows, top_k, hidden, weights), hidden, residual.data());
  for (std::size_t t = 0; t < rows; ++t) {
    for (std::size_t i = 0; i < hidden; ++i) {
      double expected = bf16_to_float(residual[t * hidden + i]);
      double magnitude = std::abs(expected);
      for (std::size_t j = 0; j < top_k; ++j) {
        const double term = static_cast<double>(weights[t * top_k + j]) *
                            bf16_to_float(by_slot[(t * top_k + j) * hidden + i]);
        expected += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(bf16_to_float(output[t * hidden + i]), expected,
                  test::bf16_tolerance(expected) + magnitude * 0x1p-20);
    }
  }
}

TEST(CombineExact, DoesNotDependOnHowSlotsAreSpreadOverParts) {
  std::mt19937_64 random(3);
  const std::size_t rows = 64, hidden = 72, top_k = 4;
  const auto by_slot = random_bf16(random, rows * top_k * hidden);
  const auto weights = random_floats(random, rows * top_k, 0, 1);
  std::vector<std::uint16_t> first;
  for (const std::size_t part_count : {1, 2, 7, 16}) {
    const Scattered scattered = scatter(random, by_slot, rows * top_k, hidden, part_count);
    const auto output = combine(plan_combine_exact(scattered.parts(), rows, top_k, hidden, weights), hidden, nullptr);
    if (first.empty()) first = output;
    EXPECT_EQ(output, first) << part_count << " parts";
  }
}

TEST(CombineExact, NoWeightsMeansWeightsOfOne) {
  std::mt19937_64 random(4);
  const std::size_t rows = 9, hidden = 50, top_k = 3;
  const auto by_slot = random_bf16(random, rows * top_k * hidden);
  const Scattered scattered = scatter(random, by_slot, rows * top_k, hidden, 2);
  const std::vector<float> ones(rows * top_k, 1.0f);
  EXPECT_EQ(combine(plan_combine_exact(scattered.parts(), rows, top_k, hidden, {}), hidden, nullptr),
            combine(plan_combine_exact(scattered.parts(), rows, top_k, hidden, ones), hidden, nullptr));
}

TEST(CombineExact, OutputsWrittenPastTheCachesHaveTheSameBits) {
  std::mt19937_64 random(6);
  const std::size_t hidden = 4096, rows = 600;
  ASSERT_TRUE(worth_streaming(rows * hidden * sizeof(std::uint16_t)));
  const auto results = random_bf16(random, rows * hidden), residual = random_bf16(random, rows * hidden);
  const auto weights = random_floats(random, rows, 0, 1);
  std::vector<std::uint32_t> targets(rows);
  std::iota(targets.begin(), targets.end(), 0u);
  std::ranges::shuffle(targets, random);
  const CombinePart part{results.data(), targets};
  const CombinePlan plan = plan_combine_exact({&part, 1}, rows, 1, hidden, weights);
  std::vector<std::uint16_t> memory(rows * hidden + 64);
  void* start = memory.data();
  std::size_t space = memory.size() * sizeof(std::uint16_t);
  auto* aligned = static_cast<std::uint16_t*>(std::align(64, rows * hidden * sizeof(std::uint16_t), start, space));
  combine_rows(plan, 0, rows, hidden, residual.data(), aligned);
  const std::vector<std::uint16_t> streamed(aligned, aligned + rows * hidden);
  combine_rows(plan, 0, rows, hidden, residual.data(), aligned + 1);
  EXPECT_TRUE(std::equal(streamed.begin(), streamed.end(), aligned + 1));
}

TEST(CombineExact, NanOfAnyKindStaysNanInItsTokenAlone) {
  std::mt19937_64 random(7);
  const std::size_t rows = 3, hidden = 50, top_k = 2;
  auto by_slot = random_bf16(random, rows * top_k * hidden);
  by_slot[hidden + 7] = 0x7f81;
  std::vector<float> weights(rows * top_k, 0.5f);
  // Rounding these bits like a number would carry into the sign and give zero.
  weights[2 * top_k] = std::bit_cast<float>(0x7fffffffu);
  const Scattered scattered = scatter(random, by_slot, rows * top_k, hidden, 2);
  const auto output = combine(plan_combine_exact(scattered.parts(), rows, top_k, hidden, weights), hidden, nullptr);
  for (std::size_t at = 0; at < output.size(); ++at) {
    EXPECT_EQ(std::isnan(bf16_to_float(output[at])), at == 7 || at >= 2 * hidden) << at;
  }
}

TEST(CombineExact, CountsTheRowsThatHoldNanOrInfinity) {
  std::mt19937_64 random(8);
  for (const std::size_t hidden : {1, 16, 31, 64, 257, 4096}) {
    const std::size_t rows = 600;
    auto results = random_bf16(random, rows * hidden);
    std::vector<float> weights(rows, 1.0f);
    std::vector<std::uint32_t> targets(rows);
    std::iota(targets.begin(), targets.end(), 0u);
    // The largest finite value does not count; what rounds to infinity, infinity and NaN do.
    results[0] = 0x7f7f;
    results[3 * hidden + hidden / 2] = 0xff80;
    results[500 * hidden + hidden - 1] = 0x7fc0;
    results[599 * hidden] = 0x7f7f;
    weights[599] = 1.003f;
    const CombinePart part{results.data(), targets};
    const CombinePlan plan = plan_combine_exact({&part, 1}, rows, 1, hidden, weights);
    std::vector<std::uint16_t> output(rows * hidden);
    EXPECT_EQ(combine_rows(plan, 0, rows, hidden, nullptr, output.data()), 3u) << hidden;
    EXPECT_EQ(combine_rows(plan, 4, 496, hidden, nullptr, output.data()), 0u) << hidden;
  }
}

TEST(CombinePartial, SumsTheRowsOfATokenInTheOrderOfParts) {
  std::mt19937_64 random(5);
  const std::size_t rows = 31, hidden = 90, part_count = 4;
  Scattered scattered{.targets = std::vector<std::vector<std::uint32_t>>(part_count), .rows = {}};
  for (std::uint32_t t = 0; t < rows; ++t) {
    for (std::size_t p = 0; p < part_count; ++p) {
      if (p == t % part_count || random() % 2 == 0) scattered.targets[p].push_back(t);
    }
  }
  for (auto& targets : scattered.targets) {
    std::ranges::shuffle(targets, random);
    scattered.rows.push_back(random_bf16(random, targets.size() * hidden));
  }
  const auto residual = random_bf16(random, rows * hidden);
  const auto output = combine(plan_combine_partial(scattered.parts(), rows, hidden), hidden, residual.data(), 7);
  for (std::uint32_t t = 0; t < rows; ++t) {
    for (std::size_t i = 0; i < hidden; ++i) {
      std::vector<std::uint16_t> terms;
      for (std::size_t p = 0; p < part_count; ++p) {
        const auto at = std::ranges::find(scattered.targets[p], t) - scattered.targets[p].begin();
        if (static_cast<std::size_t>(at) == scattered.targets[p].size()) continue;
        terms.push_back(scattered.rows[p][static_cast<std::size_t>(at) * hidden + i]);
      }
      const std::vector<float> ones(terms.size(), 1.0f);
      ASSERT_EQ(output[t * hidden + i], expected_value(terms, ones, &residual[t * hidden + i]));
    }
  }
}

TEST(Reduce, WeighsAndSumsTheRowsOfAnIndexInOrder) {
  std::mt19937_64 random(6);
  const std::size_t output_rows = 12, hidden = 49, entries = 60;
  std::vector<std::uint32_t> indices(entries);
  for (std::uint32_t i = 0; i < entries; ++i) {
    indices[i] = i < output_rows ? i : static_cast<std::uint32_t>(random() % output_rows);
  }
  std::ranges::shuffle(indices, random);
  const auto rows = random_bf16(random, entries * hidden);
  const auto weights = random_floats(random, entries, -1, 1);
  const auto output = combine(plan_reduce(rows.data(), indices, weights, output_rows, hidden), hidden, nullptr);
  for (std::size_t r = 0; r < output_rows; ++r) {
    for (std::size_t i = 0; i < hidden; ++i) {
      std::vector<std::uint16_t> terms;
      std::vector<float> term_weights;
      for (std::size_t e = 0; e < entries; ++e) {
        if (indices[e] != r) continue;
        terms.push_back(rows[e * hidden + i]);
        term_weights.push_back(weights[e]);
      }
      ASSERT_EQ(output[r * hidden + i], expected_value(terms, term_weights, nullptr));
    }
  }
}

void expect_error(Code code, const std::string& message, const std::function<void()>& call) {
  try {
    call();
    FAIL() << "no error, expected: " << message;
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code);
    EXPECT_EQ(std::string(error.what()), message);
  }
}

TEST(CombineErrors, NoSlotMayBeMissingOrGivenTwice) {
  const std::vector<std::uint16_t> rows(10 * 4);
  const std::vector<std::uint32_t> some = {0, 1, 2, 4, 5};
  const std::vector<std::uint32_t> again = {3, 2};
  const std::vector<std::uint32_t> beyond = {3, 6};
  expect_error(Code::data_loss, "slot 3 of 6 is missing",
               [&] { plan_combine_exact(std::vector<CombinePart>{{rows.data(), some}}, 3, 2, 4, {}); });
  expect_error(Code::data_loss, "slot 2 of 6 is given twice", [&] {
    plan_combine_exact(std::vector<CombinePart>{{rows.data(), some}, {rows.data(), again}}, 3, 2, 4, {});
  });
  expect_error(Code::invalid_argument, "targets is 6; allowed: below 6", [&] {
    plan_combine_exact(std::vector<CombinePart>{{rows.data(), some}, {rows.data(), beyond}}, 3, 2, 4, {});
  });
  expect_error(Code::invalid_argument, "weights.length is 5; allowed: 0 or 6", [&] {
    plan_combine_exact(std::vector<CombinePart>{{rows.data(), some}}, 3, 2, 4, std::vector<float>(5));
  });
}

TEST(CombineErrors, NoTokenMayBeMissingOrTwiceInOnePart) {
  const std::vector<std::uint16_t> rows(10 * 4);
  const std::vector<std::uint32_t> some = {0, 2};
  const std::vector<std::uint32_t> twice = {1, 2, 1};
  const std::vector<std::uint32_t> beyond = {1, 3};
  expect_error(Code::data_loss, "row 1 of 3 has no result",
               [&] { plan_combine_partial(std::vector<CombinePart>{{rows.data(), some}}, 3, 4); });
  expect_error(Code::data_loss, "token 1 of 3 is given twice in part 1", [&] {
    plan_combine_partial(std::vector<CombinePart>{{rows.data(), some}, {rows.data(), twice}}, 3, 4);
  });
  expect_error(Code::invalid_argument, "targets is 3; allowed: below 3", [&] {
    plan_combine_partial(std::vector<CombinePart>{{rows.data(), some}, {rows.data(), beyond}}, 3, 4);
  });
}

TEST(CombineErrors, ReduceNeedsARowForEveryOutputRow) {
  const std::vector<std::uint16_t> rows(3 * 4);
  const std::vector<float> weights(3, 1.0f);
  expect_error(Code::data_loss, "row 1 of 3 has no result", [&] {
    plan_reduce(rows.data(), std::vector<std::uint32_t>{0, 2, 0}, weights, 3, 4);
  });
  expect_error(Code::invalid_argument, "rowIndices is 3; allowed: below 3", [&] {
    plan_reduce(rows.data(), std::vector<std::uint32_t>{0, 1, 3}, weights, 3, 4);
  });
  expect_error(Code::invalid_argument, "weights.length is 3; allowed: 2", [&] {
    plan_reduce(rows.data(), std::vector<std::uint32_t>{0, 1}, weights, 2, 4);
  });
}

TEST(CombineErrors, NoRowsAtAllAreNoError) {
  EXPECT_EQ(plan_combine_exact({}, 0, 2, 4, {}).row_count(), 0u);
  EXPECT_EQ(plan_combine_partial({}, 0, 4).row_count(), 0u);
}

}  // namespace
}  // namespace switchyard
