// Packing.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/pack.h"
#include "kernels/streaming.h"
#include "kernels_support.h"

namespace switchyard {
namespace {

TEST(Pack, CopiesTheRowsOfItsTokensInAnyRanges) {
  std::mt19937_64 random(2);
  for (const std::size_t hidden : {1, 17, 64, 1000}) {
    const auto rows = test::random_bf16(random, 50 * hidden);
    const std::vector<std::uint32_t> tokens = {0, 3, 4, 9, 20, 21, 22, 48, 49};
    std::vector<std::uint16_t> output(tokens.size() * hidden + 1, 0x1234);
    for (const auto& [first, count] : {std::pair{4, 5}, std::pair{0, 1}, std::pair{1, 3}, std::pair{9, 0}}) {
      pack_rows(rows.data(), hidden * sizeof(std::uint16_t), tokens, static_cast<std::size_t>(first), static_cast<std::size_t>(count),
                output.data());
    }
    EXPECT_EQ(output.back(), 0x1234) << "wrote beyond the rows";
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_TRUE(std::equal(&output[i * hidden], &output[i * hidden] + hidden, &rows[tokens[i] * hidden]));
    }
  }
}

TEST(Pack, CopiesManyRowsPastTheCachesFromAndToAnyAlignment) {
  std::mt19937_64 random(3);
  for (const std::size_t hidden : {8192, 8191}) {
    const auto rows = test::random_bf16(random, 8 * hidden);
    std::vector<std::uint32_t> tokens(300);
    for (auto& token : tokens) token = random() % 8;
    ASSERT_TRUE(worth_streaming(tokens.size() * hidden * sizeof(std::uint16_t)));
    for (const std::size_t shift : {0, 1, 16}) {
      std::vector<std::uint16_t> output(shift + tokens.size() * hidden + 1, 0x1234);
      pack_rows(rows.data(), hidden * sizeof(std::uint16_t), tokens, 0, tokens.size(), output.data() + shift);
      EXPECT_EQ(output.back(), 0x1234) << "wrote beyond the rows";
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        const std::uint16_t* row = &output[shift + i * hidden];
        ASSERT_TRUE(std::equal(row, row + hidden, &rows[tokens[i] * hidden])) << i;
      }
    }
  }
}

TEST(Copy, WritesPastTheCachesJustTheBytesOfAnyLengthFromAndToAnyAlignment) {
  std::mt19937_64 random(4);
  const auto source = test::random_bf16(random, 20'000);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(source.data());
  for (const std::size_t length : {0, 1, 63, 64, 65, 4096, 16383, 16384, 16385, 33000}) {
    for (const std::size_t from : {0, 1, 64}) {
      for (const std::size_t to : {0, 3, 32}) {
        std::vector<std::uint8_t> target(to + length + 1, 0x5a);
        copy(target.data() + to, bytes + from, length, true);
        EXPECT_TRUE(std::equal(bytes + from, bytes + from + length, target.data() + to)) << length;
        EXPECT_TRUE(std::all_of(target.begin(), target.begin() + static_cast<std::ptrdiff_t>(to),
                                [](std::uint8_t byte) { return byte == 0x5a; }));
        EXPECT_EQ(target.back(), 0x5a) << "wrote beyond the bytes";
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
