// The sum of a (row, expert) is defined to the bit; every kernel of this processor is held to the definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "kernels/flush.h"
#include "kernels/scores.h"
#include "kernels_support.h"

namespace switchyard::scores {
namespace {

struct Problem {
  std::size_t rows;
  std::size_t pairs;
  std::size_t panels;
  std::vector<std::uint32_t> elements;
  /** Panel, element, expert of the panel: as Block<float> wants them. */
  std::vector<float> weights;
  std::vector<float> logits;
};

/** The powers of two that values take. */
struct Exponents {
  int low;
  int high;
};

/** The bits of a float that BF16 holds, or of any. */
enum class Fraction : std::uint32_t { bf16 = 0x807f0000u, whole = 0x807fffffu };

Problem make_problem(std::mt19937_64& random, std::size_t rows, std::size_t pairs, std::size_t panels,
                     Exponents exponents, Fraction weight_fraction) {
  const auto value = [&](Fraction fraction) {
    const auto sign_and_fraction = static_cast<std::uint32_t>(random()) & static_cast<std::uint32_t>(fraction);
    const int exponent = std::uniform_int_distribution(exponents.low, exponents.high)(random);
    return sign_and_fraction | static_cast<std::uint32_t>(127 + exponent) << 23;
  };
  Problem problem{.rows = rows, .pairs = pairs, .panels = panels, .elements = {}, .weights = {}, .logits = {}};
  problem.elements.resize(rows * row_stride);
  for (auto& pair : problem.elements) pair = value(Fraction::bf16) >> 16 | value(Fraction::bf16);
  problem.weights.resize(panels * pairs * 2 * panel_width);
  for (float& weight : problem.weights) weight = std::bit_cast<float>(value(weight_fraction));
  const float largest = std::ldexp(1.0f, std::min(2 * exponents.high, 127));
  problem.logits = test::random_floats(random, rows * panels * panel_width, 0, largest);
  return problem;
}

float half_of(std::uint32_t pair, bool odd) {
  return bf16_to_float(static_cast<std::uint16_t>(odd ? pair >> 16 : pair));
}

template <typename Weight>
std::vector<float> run(const Kernel<Weight>& kernel, const Problem& problem, const std::vector<Weight>& weights) {
  std::vector<float> logits = problem.logits;
  std::vector<float> wide(problem.rows * wide_row_stride);
  for (std::size_t r = 0; r < problem.rows; ++r) {
    for (std::size_t i = 0; i < 2 * problem.pairs; ++i) {
      const std::size_t at = i / 2 + i % 2 * odd_after;
      wide[r * wide_row_stride + at] = half_of(problem.elements[r * row_stride + i / 2], i % 2 != 0);
    }
  }
  kernel.add(Block<Weight>{.rows = kernel.wide ? nullptr : problem.elements.data(),
                           .wide_rows = kernel.wide ? wide.data() : nullptr,
                           .row_count = problem.rows,
                           .pairs = problem.pairs,
                           .weights = weights.data(),
                           .panel_count = problem.panels,
                           .panel_stride = problem.pairs * weights_per_pair<Weight> * panel_width,
                           .logits = logits.data(),
                           .logit_stride = problem.panels * panel_width,
                           .next = reinterpret_cast<std::uintptr_t>(problem.elements.data())});
  return logits;
}

std::vector<float> run(const Kernel<float>& kernel, const Problem& problem) {
  return run(kernel, problem, problem.weights);
}

/** With the weights, which BF16 must hold, in pairs. */
std::vector<float> run(const Kernel<Bf16Pair>& kernel, const Problem& problem) {
  std::vector<Bf16Pair> pairs(problem.weights.size() / 2);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const float* even = &problem.weights[i / panel_width * 2 * panel_width + i % panel_width];
    pairs[i] = std::bit_cast<std::uint32_t>(even[0]) >> 16 | std::bit_cast<std::uint32_t>(even[panel_width]);
  }
  return run(kernel, problem, pairs);
}

/** The C library's fma ignores the flush mode on some systems; this instruction does not. */
[[gnu::noinline]] __attribute__((target("fma"))) float fused(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
[[gnu::noinline]] float added(float a, float b) { return a + b; }

std::vector<float> run_definition(const Problem& problem) {
  const FlushSubnormals flush;
  std::vector<float> logits = problem.logits;
  for (std::size_t r = 0; r < problem.rows; ++r) {
    for (std::size_t e = 0; e < problem.panels * panel_width; ++e) {
      const float* weights = &problem.weights[e / panel_width * problem.pairs * 2 * panel_width + e % panel_width];
      float sum = 0;
      for (std::size_t p = 0; p < problem.pairs; ++p) {
        const std::uint32_t x = problem.elements[r * row_stride + p];
        sum = fused(half_of(x, true), weights[(2 * p + 1) * panel_width], sum);
        sum = fused(half_of(x, false), weights[2 * p * panel_width], sum);
      }
      float& logit = logits[r * problem.panels * panel_width + e];
      logit = added(logit, sum);
    }
  }
  return logits;
}

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected, const char* kernel) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(actual[i]), std::bit_cast<std::uint32_t>(expected[i]))
        << kernel << " at " << i << ": " << actual[i] << " instead of " << expected[i];
  }
}

class ScoreKernels : public testing::TestWithParam<Exponents> {};

TEST_P(ScoreKernels, GiveTheBitsOfTheDefinition) {
  std::mt19937_64 random(1);
  for (const std::size_t rows : {1, 2, 3, 4, 5, 12, 13, 31, 48}) {
    for (const std::size_t panels : {1, 2, 3}) {
      for (const std::size_t pairs : {std::size_t{1}, std::size_t{7}, block_pairs}) {
        const Problem problem = make_problem(random, rows, pairs, panels, GetParam(), Fraction::bf16);
        const auto expected = run_definition(problem);
        const Problem precise = make_problem(random, rows, pairs, panels, GetParam(), Fraction::whole);
        const auto expected_precise = run_definition(precise);
        for (const auto& kernel : kernels<Bf16Pair>()) {
          expect_same_bits(run(kernel, problem), expected, kernel.name);
        }
        for (const auto& kernel : kernels<float>()) {
          expect_same_bits(run(kernel, problem), expected, kernel.name);
          expect_same_bits(run(kernel, precise), expected_precise, kernel.name);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Plain, ScoreKernels, testing::Values(Exponents{-3, 1}));
INSTANTIATE_TEST_SUITE_P(Cancelling, ScoreKernels, testing::Values(Exponents{-20, 20}));
INSTANTIATE_TEST_SUITE_P(SubnormalProducts, ScoreKernels, testing::Values(Exponents{-68, -60}));
INSTANTIATE_TEST_SUITE_P(SubnormalValues, ScoreKernels, testing::Values(Exponents{-127, 0}));
INSTANTIATE_TEST_SUITE_P(InfiniteAndNan, ScoreKernels, testing::Values(Exponents{-127, 128}));

TEST(ScoreKernels, LeaveTheThreadsFloatingPointModeAsItWas) {
  std::mt19937_64 random(9);
  const Problem problem = make_problem(random, 2, 3, 1, {-1, 1}, Fraction::bf16);
  const unsigned before = _mm_getcsr() & 0xffc0u;
  const auto expect_mode_kept = [&](const auto& kernel) {
    run(kernel, problem);
    EXPECT_EQ(_mm_getcsr() & 0xffc0u, before) << kernel.name;
  };
  for (const auto& kernel : kernels<Bf16Pair>()) expect_mode_kept(kernel);
  for (const auto& kernel : kernels<float>()) expect_mode_kept(kernel);
}

}  // namespace
}  // namespace switchyard::scores
