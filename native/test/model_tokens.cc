#include "model/tokens.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/bf16.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

TEST(TokenSource, ATokenDependsOnItsIndexAlone) {
  const TokenSource source(5, 300, 1.1, 16);
  std::vector<uint16_t> all(40 * 300), part(7 * 300);
  source.read(100, 40, all.data());
  source.read(123, 7, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 23 * 300));
}

TEST(TokenSource, TopicsFollowAZipfLaw) {
  constexpr int count = 200'000;
  const TokenSource source(1, 8, 1.5, 10);
  std::vector<int> seen(10);
  for (int token = 0; token < count; ++token) ++seen[source.topic(token)];
  double sum = 0;
  for (int rank = 1; rank <= 10; ++rank) sum += std::pow(rank, -1.5);
  for (int rank = 1; rank <= 10; ++rank) {
    const double share = std::pow(rank, -1.5) / sum;
    EXPECT_NEAR(seen[rank - 1], share * count, 6 * std::sqrt(share * count)) << rank;
  }
}

TEST(TokenSource, WithoutSkewTopicsAreUniform) {
  const TokenSource source(1, 8, 0, 4);
  std::vector<int> seen(4);
  for (int token = 0; token < 40'000; ++token) ++seen[source.topic(token)];
  for (const int count : seen) EXPECT_NEAR(count, 10'000, 6 * 100);
}

TEST(TokenSource, TokensOfOneTopicShareItsCentre) {
  constexpr size_t hidden = 2048;
  const TokenSource source(9, hidden, 0, 2);
  std::vector<uint16_t> rows(64 * hidden);
  source.read(0, 64, rows.data());
  const auto correlation = [&](size_t a, size_t b) {
    double sum = 0;
    for (size_t i = 0; i < hidden; ++i) sum += bf16_to_float(rows[a * hidden + i]) * bf16_to_float(rows[b * hidden + i]);
    return sum / hidden;
  };
  for (size_t token = 1; token < 64; ++token) {
    // The centre's mean square is 1/3; the products of independent parts vanish.
    const double expected = source.topic(token) == source.topic(0) ? 1.0 / 3 : 0;
    EXPECT_NEAR(correlation(0, token), expected, 0.1) << token;
  }
}

TEST(TokenSource, RefusesParametersOutOfRange) {
  EXPECT_THROW(TokenSource(1, 0, 1, 4), Error);
  EXPECT_THROW(TokenSource(1, 8, -0.1, 4), Error);
  EXPECT_THROW(TokenSource(1, 8, NAN, 4), Error);
  EXPECT_THROW(TokenSource(1, 8, 1, 0), Error);
}

}  // namespace
}  // namespace switchyard
