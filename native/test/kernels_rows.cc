// Normalisation, values that are not finite, and BF16 itself.
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels_support.h"

namespace switchyard {
namespace {

using test::random_bf16;

const std::size_t widths[] = {1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 100, 255, 256, 1024, 4096, 4101};

TEST(Bf16, NarrowingUndoesWideningForEveryValueButNan) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_float(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(value))));
    } else {
      EXPECT_EQ(float_to_bf16(value), bits);
    }
  }
}

TEST(Bf16, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1p-8f)), 1.0f);
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x1.8p-8f)), 1.0f + 0x1p-7f);
  EXPECT_EQ(bf16_to_float(float_to_bf16(1.0f + 0x3p-8f)), 1.0f + 0x1p-6f);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0xffffffffu)))));
}

TEST(Normalize, AgreesWithFloat64ForRaggedWidths) {
  std::mt19937_64 random(1);
  for (const std::size_t hidden : widths) {
    const std::size_t rows = 5;
    const auto input = random_bf16(random, rows * hidden, 3);
    const auto weight = random_bf16(random, hidden, 2);
    std::vector<std::uint16_t> output(rows * hidden);
    normalize_rows(input.data(), rows, hidden, weight.data(), 1e-5f, output.data());
    for (std::size_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (std::size_t i = 0; i < hidden; ++i) squares += std::pow(bf16_to_float(input[r * hidden + i]), 2.0);
      const double factor = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
      for (std::size_t i = 0; i < hidden; ++i) {
        const double expected = bf16_to_float(input[r * hidden + i]) * factor * bf16_to_float(weight[i]);
        ASSERT_NEAR(bf16_to_float(output[r * hidden + i]), expected, test::bf16_tolerance(expected))
            << "hidden " << hidden << " row " << r << " element " << i;
      }
    }
  }
}

TEST(Normalize, ZeroRowsStayZeroAndNanStaysInItsRow) {
  const std::size_t hidden = 40;
  std::vector<std::uint16_t> rows(2 * hidden, 0);
  rows[hidden + 39] = 0x7fc0;
  const std::vector<std::uint16_t> weight(hidden, float_to_bf16(1));
  normalize_rows(rows.data(), 2, hidden, weight.data(), 1e-6f, rows.data());
  for (std::size_t i = 0; i < hidden; ++i) {
    EXPECT_EQ(rows[i], 0);
    EXPECT_TRUE(std::isnan(bf16_to_float(rows[hidden + i])));
  }
}

TEST(Normalize, RowsWhoseSquaresOverflowAreNormalisedLikeOthers) {
  std::mt19937_64 random(4);
  const std::size_t hidden = 333;
  const auto weight = random_bf16(random, hidden);
  auto input = random_bf16(random, hidden, 2);
  std::vector<std::uint16_t> expected(hidden);
  normalize_rows(input.data(), 1, hidden, weight.data(), 0, expected.data());
  for (auto& value : input) value = float_to_bf16(bf16_to_float(value) * 0x1p126f);
  std::vector<std::uint16_t> output(hidden);
  normalize_rows(input.data(), 1, hidden, weight.data(), 1e-5f, output.data());
  EXPECT_EQ(output, expected);
  input[7] = 0x7f80;
  normalize_rows(input.data(), 1, hidden, weight.data(), 1e-5f, output.data());
  EXPECT_TRUE(std::isnan(bf16_to_float(output[7]))) << "infinity has no norm";
}

TEST(Normalize, RowsHaveTheSameBitsInAnySplit) {
  std::mt19937_64 random(2);
  const std::size_t hidden = 333;
  const std::size_t rows = 29;
  const auto input = random_bf16(random, rows * hidden);
  const auto weight = random_bf16(random, hidden);
  std::vector<std::uint16_t> whole(rows * hidden);
  std::vector<std::uint16_t> split(rows * hidden);
  normalize_rows(input.data(), rows, hidden, weight.data(), 1e-6f, whole.data());
  for (std::size_t first = 0; first < rows; first += 3) {
    const std::size_t count = std::min<std::size_t>(3, rows - first);
    normalize_rows(input.data() + first * hidden, count, hidden, weight.data(), 1e-6f, split.data() + first * hidden);
  }
  EXPECT_EQ(whole, split);
}

TEST(NonFinite, CountsRowsAndFindsTheFirst) {
  std::mt19937_64 random(3);
  for (const std::size_t hidden : widths) {
    const std::size_t rows = 7;
    auto values = random_bf16(random, rows * hidden, 1e38f);
    EXPECT_EQ(count_non_finite(values.data(), rows, hidden), 0u) << "hidden " << hidden;
    EXPECT_EQ(find_non_finite(values.data(), rows, hidden), rows);
    values[1 * hidden] = 0x7f80;
    values[2 * hidden - 1] = 0xff80;
    values[3 * hidden + hidden / 2] = 0x7fc1;
    values[7 * hidden - 1] = 0xffff;
    // The largest finite value must not count.
    values[5 * hidden] = 0x7f7f;
    EXPECT_EQ(count_non_finite(values.data(), rows, hidden), 3u) << "hidden " << hidden;
    EXPECT_EQ(find_non_finite(values.data(), rows, hidden), 1u);
  }
}

TEST(NonFinite, CountsEveryValueThatIsNotFinite) {
  std::mt19937_64 random(7);
  for (const std::size_t count : widths) {
    auto values = random_bf16(random, count);
    EXPECT_EQ(count_non_finite_values(values.data(), count), 0u) << count;
    values.front() = 0x7fc1;
    values.back() = 0xff80;
    values[count / 2] = 0x7f80;
    const std::size_t expected = std::set<std::size_t>{0, count / 2, count - 1}.size();
    EXPECT_EQ(count_non_finite_values(values.data(), count), expected) << count;
    std::fill(values.begin(), values.end(), std::uint16_t{0xffff});
    EXPECT_EQ(count_non_finite_values(values.data(), count), count);
  }
}

}  // namespace
}  // namespace switchyard
