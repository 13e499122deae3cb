// Conversion of rows at the border to clients, against the definitions of the formats.
#include "kernels/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels_support.h"

namespace switchyard {
namespace {

/** The value of IEEE binary16 bits, by its definition. */
double value_of_f16(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const double fraction = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

template <typename Stored>
std::vector<std::uint16_t> narrowed(const std::vector<Stored>& values, RowDtype dtype, std::size_t shift = 0) {
  std::vector<std::byte> bytes(values.size() * sizeof(Stored) + shift);
  std::memcpy(bytes.data() + shift, values.data(), values.size() * sizeof(Stored));
  std::vector<std::uint16_t> out(values.size() + 1, 0x1234);
  narrow_rows(bytes.data() + shift, dtype, values.size(), out.data());
  EXPECT_EQ(out.back(), 0x1234) << "wrote beyond the rows";
  out.pop_back();
  return out;
}

std::vector<std::uint16_t> all_bits() {
  std::vector<std::uint16_t> bits(65536);
  std::iota(bits.begin(), bits.end(), std::uint16_t{0});
  return bits;
}

TEST(Convert, NarrowsFloatsOfAnyKindAndLength) {
  std::mt19937_64 random(5);
  for (const std::size_t count : {1, 7, 8, 9, 1000, 4097}) {
    std::vector<float> values(count);
    for (float& value : values) value = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    for (const std::size_t shift : {0, 1}) {
      const auto out = narrowed(values, RowDtype::f32, shift);
      for (std::size_t i = 0; i < count; ++i) ASSERT_EQ(out[i], float_to_bf16(values[i])) << values[i];
    }
  }
}

TEST(Convert, NarrowsEveryFloat16) {
  const auto out = narrowed(all_bits(), RowDtype::f16);
  for (std::size_t bits = 0; bits < out.size(); ++bits) {
    const double value = value_of_f16(static_cast<std::uint16_t>(bits));
    if (std::isnan(value)) EXPECT_TRUE(std::isnan(bf16_to_float(out[bits]))) << bits;
    else EXPECT_EQ(out[bits], float_to_bf16(static_cast<float>(value))) << bits;
  }
}

TEST(Convert, WidensEveryValueToFloatsAndToTheNearestFloat16) {
  const auto bits = all_bits();
  std::vector<float> floats(bits.size());
  widen_rows(bits.data(), bits.size(), RowDtype::f32, reinterpret_cast<std::byte*>(floats.data()));
  std::vector<std::uint16_t> halves(bits.size());
  widen_rows(bits.data(), bits.size(), RowDtype::f16, reinterpret_cast<std::byte*>(halves.data()));
  for (std::size_t i = 0; i < bits.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(floats[i]), static_cast<std::uint32_t>(i) << 16);
    const double value = bf16_to_float(bits[i]);
    const double half = value_of_f16(halves[i]);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(half)) << i;
      continue;
    }
    EXPECT_EQ(std::signbit(value), std::signbit(half)) << i;
    // 65520 lies in the middle between the largest float16 and the next power of two, which it does not have.
    if (std::fabs(value) >= 65520) {
      EXPECT_TRUE(std::isinf(half)) << value;
      continue;
    }
    for (const int step : {-1, 1}) {
      const auto neighbour = static_cast<std::uint16_t>(halves[i] + step);
      if ((neighbour ^ halves[i]) & 0x8000 || std::isinf(value_of_f16(neighbour))) continue;
      const double error = std::fabs(value - half);
      const double other = std::fabs(value - value_of_f16(neighbour));
      EXPECT_TRUE(error < other || (error == other && halves[i] % 2 == 0)) << value;
    }
  }
}

TEST(Convert, GivesBackWhatItTook) {
  std::mt19937_64 random(6);
  const auto rows = test::random_bf16(random, 1003);
  for (const RowDtype dtype : {RowDtype::bf16, RowDtype::f32}) {
    std::vector<std::byte> bytes(rows.size() * bytes_of(dtype) + 1, std::byte{0x5a});
    widen_rows(rows.data(), rows.size(), dtype, bytes.data());
    EXPECT_EQ(bytes.back(), std::byte{0x5a}) << "wrote beyond the rows";
    std::vector<std::uint16_t> back(rows.size());
    narrow_rows(bytes.data(), dtype, rows.size(), back.data());
    EXPECT_EQ(back, rows);
  }
}

}  // namespace
}  // namespace switchyard
