#include "model/packed_tensor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/bf16.h"
#include "model/codes.h"
#include "model/generator.h"
#include "model_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

template <typename Stored>
TensorSource stored_tensor(const std::vector<Stored>& values, StoredDtype dtype) {
  // One byte in front, so that no element is aligned.
  std::vector<char> bytes(1 + values.size() * sizeof(Stored));
  std::memcpy(bytes.data() + 1, values.data(), values.size() * sizeof(Stored));
  return {.rows = 1, .columns = values.size(), .origin = FileTensor{test::weight_file(bytes), 1, dtype}};
}

std::vector<uint16_t> read_all(const TensorSource& source) {
  check_tensor(source, "tensor");
  std::vector<uint16_t> out(source.elements());
  read_elements(source, 0, out.size(), out.data());
  return out;
}

TEST(Generator, GivesTheValuesOfItsDefinition) {
  // Computed by another program, in Python's integers, from the definition.
  const auto first = [](uint64_t seed, Generator::Domain domain, uint64_t stream, uint64_t index) {
    float value;
    Generator(seed, domain, stream).uniform(index, 1, &value);
    return value * 0x1p23f;
  };
  EXPECT_EQ(Generator(0, Generator::Domain::weights, 0).bits(0), 0xa0e84e91u);
  EXPECT_EQ(first(0, Generator::Domain::weights, 0, 0), -6231986.0f);
  EXPECT_EQ(first(7, Generator::Domain::weights, 3, 4095), 4781974.0f);
  EXPECT_EQ(first(7, Generator::Domain::weights, 3, 4096), -7422170.0f);
  EXPECT_EQ(first((uint64_t{1} << 53) - 1, Generator::Domain::noise, 12345678901, 1'000'000'000'000), 7542539.0f);
}

TEST(Generator, AnyPartEqualsThePartOfTheWhole) {
  const Generator generator(3, Generator::Domain::weights, 9);
  std::vector<float> whole(10'000);
  generator.uniform(0, whole.size(), whole.data());
  for (const auto& [first, count] : {std::pair<size_t, size_t>{0, 1}, {4090, 13}, {4096, 4096}, {777, 9000}}) {
    std::vector<float> part(count);
    generator.uniform(first, count, part.data());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << first;
  }
}

TEST(Generator, IsUniformAndStreamsAreUncorrelated) {
  constexpr size_t count = 1 << 20;
  std::vector<float> a(count), b(count);
  Generator(1, Generator::Domain::weights, 1).uniform(0, count, a.data());
  Generator(1, Generator::Domain::weights, 2).uniform(0, count, b.data());
  double sum = 0, squares = 0, product = 0, lag = 0;
  std::vector<int> buckets(16);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_GE(a[i], -1.0f);
    ASSERT_LT(a[i], 1.0f);
    sum += a[i];
    squares += a[i] * a[i];
    product += a[i] * b[i];
    lag += a[i] * a[(i + 1) % count];
    ++buckets[static_cast<int>((a[i] + 1) * 8)];
  }
  // Six standard deviations of the means: 1/sqrt(3n), 0.3/sqrt(n) and 1/(3 sqrt(n)).
  EXPECT_NEAR(sum / count, 0, 6 * 0.578 / 1024);
  EXPECT_NEAR(squares / count, 1.0 / 3, 6 * 0.3 / 1024);
  EXPECT_NEAR(product / count, 0, 6 * 0.334 / 1024);
  EXPECT_NEAR(lag / count, 0, 6 * 0.334 / 1024);
  for (const int bucket : buckets) EXPECT_NEAR(bucket, count / 16, 6 * std::sqrt(count / 16.0));
}

TEST(TensorSource, SyntheticWeightsAreCentredScaledAndRoundedOnce) {
  const TensorSource source{.rows = 3, .columns = 5000, .origin = SyntheticTensor{11, 4, 0.25f, 1.0f}};
  const auto bits = read_all(source);
  std::vector<float> unit(bits.size());
  Generator(11, Generator::Domain::weights, 4).uniform(0, unit.size(), unit.data());
  for (size_t i = 0; i < bits.size(); ++i) {
    ASSERT_EQ(bits[i], float_to_bf16(1.0f + 0.25f * unit[i])) << i;
  }
  std::vector<uint16_t> part(100);
  read_elements(source, 8150, part.size(), part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), bits.begin() + 8150));
}

TEST(TensorSource, ReadsBf16AsItIs) {
  const std::vector<uint16_t> values{0, 0x8000, 0x3f80, 0x7f80, 0x7fc1, 0x0001, 0xff7f};
  EXPECT_EQ(read_all(stored_tensor(values, StoredDtype::bf16)), values);
}

TEST(TensorSource, RoundsF32ToNearestEven) {
  const std::vector<float> values{1.0f, 1.00390625f, 1.01171875f, -0.0f, 3.4e38f, 1e-45f,
                                  std::numeric_limits<float>::infinity()};
  const std::vector<uint16_t> expected{0x3f80, 0x3f80, 0x3f82, 0x8000, 0x7f80, 0x0000, 0x7f80};
  EXPECT_EQ(read_all(stored_tensor(values, StoredDtype::f32)), expected);
}

TEST(TensorSource, ConvertsEveryF16) {
  std::vector<uint16_t> values(65536);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i);
  const auto bits = read_all(stored_tensor(values, StoredDtype::f16));
  for (size_t i = 0; i < values.size(); ++i) {
    const int exponent = (i >> 10) & 0x1f;
    const int fraction = i & 0x3ff;
    if (exponent == 31 && fraction != 0) {
      EXPECT_TRUE(std::isnan(bf16_to_float(bits[i]))) << i;
      continue;
    }
    double value = exponent == 31  ? std::numeric_limits<double>::infinity()
                   : exponent == 0 ? std::ldexp(fraction, -24)
                                   : std::ldexp(1024 + fraction, exponent - 25);
    if (i & 0x8000) value = -value;
    ASSERT_EQ(bits[i], float_to_bf16(static_cast<float>(value))) << i;
  }
}

TEST(TensorSource, GivesTheStoredValuesOfEveryDtypeAsFloats) {
  const auto floats_of = [](const TensorSource& source) {
    std::vector<float> out(source.elements());
    read_elements(source, 0, out.size(), out.data());
    return out;
  };
  const std::vector<float> values{1.0f, 1 + 0x1p-23f, -0x1p-149f, 3.4e38f};
  EXPECT_EQ(floats_of(stored_tensor(values, StoredDtype::f32)), values);
  const std::vector<uint16_t> halves{0x3c01, 0x0001, 0xfbff};
  EXPECT_EQ(floats_of(stored_tensor(halves, StoredDtype::f16)), (std::vector<float>{1 + 0x1p-10f, 0x1p-24f, -65504}));
  const std::vector<uint16_t> bf16{0x3f81, 0xff7f};
  EXPECT_EQ(floats_of(stored_tensor(bf16, StoredDtype::bf16)), (std::vector<float>{1 + 0x1p-7f, bf16_to_float(0xff7f)}));
  const TensorSource synthetic{.rows = 2, .columns = 3000, .origin = SyntheticTensor{11, 4, 0.25f, 1.0f}};
  const auto bits = read_all(synthetic);
  const auto floats = floats_of(synthetic);
  for (size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(floats[i], bf16_to_float(bits[i])) << i;
}

TEST(TensorSource, ConvertsTensorsThatAreReadInSeveralPieces) {
  std::vector<float> values(200'000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const TensorSource source = stored_tensor(values, StoredDtype::f32);
  const auto bits = read_all(source);
  for (size_t i = 0; i < bits.size(); ++i) ASSERT_EQ(bits[i], float_to_bf16(values[i])) << i;
  std::vector<uint16_t> part(100'000);
  read_elements(source, 70'001, part.size(), part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), bits.begin() + 70'001));
}

/** A matrix in a file of its own that begins with a byte that is none of it. */
template <typename Stored>
struct StoredMatrix {
  StoredMatrix(StoredDtype dtype, size_t rows, size_t columns, size_t row_stride, size_t column_stride)
      : values(1 + (rows - 1) * row_stride + (columns - 1) * column_stride), rows(rows), columns(columns), row_stride(row_stride), column_stride(column_stride) {
    std::mt19937 random(7);
    for (Stored& value : values) {
      // Any but NaN, which equals nothing.
      const auto bits = static_cast<uint32_t>(random());
      if constexpr (sizeof(Stored) == 4) value = std::bit_cast<Stored>(bits & 0xbfffffff);
      else value = static_cast<Stored>(bits & 0xbbff);
    }
    source = stored_tensor(values, dtype);
    source.rows = rows;
    source.columns = columns;
    auto& tensor = std::get<FileTensor>(source.origin);
    tensor.row_stride = row_stride;
    tensor.column_stride = column_stride;
    check_tensor(source, "matrix");
    turn_columns(source);
  }

  Stored at(size_t row, size_t column) const { return values[row * row_stride + column * column_stride]; }

  /** `value(element)`: what is to be read of it. */
  template <typename Out, typename Value>
  void expect_all(const Value& value) const {
    for (const auto& [first, count] : {std::pair<size_t, size_t>{0, rows * columns}, {columns / 2, columns}, {3 * columns + 1, 2}, {columns - 1, 5 * columns + 2}}) {
      std::vector<Out> out(count);
      read_elements(source, first, count, out.data());
      for (size_t i = 0; i < count; ++i) ASSERT_EQ(out[i], value(at((first + i) / columns, (first + i) % columns))) << "element " << first + i;
    }
  }

  std::vector<Stored> values;
  size_t rows, columns, row_stride, column_stride;
  TensorSource source;
};

TEST(TensorSource, ReadsRowsAndColumnsWithOthersBetweenThem) {
  struct Place {
    size_t rows, columns, row_stride, column_stride;
  };
  // Every second row; turned; turned, every second row; more columns than are read at once; turned, every third row; one column.
  for (const auto& [rows, columns, row_stride, column_stride] :
       {Place{70, 150, 300, 1}, {70, 150, 1, 70}, {70, 150, 2, 151}, {3000, 1100, 1, 3000}, {70, 150, 3, 211}, {7, 1, 2, 14}}) {
    SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(columns) + " by " + std::to_string(row_stride) + ", " + std::to_string(column_stride));
    StoredMatrix<uint16_t>(StoredDtype::bf16, rows, columns, row_stride, column_stride).expect_all<uint16_t>(std::identity());
    StoredMatrix<uint16_t>(StoredDtype::bf16, rows, columns, row_stride, column_stride).expect_all<float>(bf16_to_float);
    StoredMatrix<float>(StoredDtype::f32, rows, columns, row_stride, column_stride).expect_all<uint16_t>(float_to_bf16);
    StoredMatrix<float>(StoredDtype::f32, rows, columns, row_stride, column_stride).expect_all<float>(std::identity());
    const StoredMatrix<uint16_t> halves(StoredDtype::f16, rows, columns, row_stride, column_stride);
    const auto value = [](uint16_t half) {
      const int exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
      const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      return static_cast<float>(half & 0x8000 ? -magnitude : magnitude);
    };
    halves.expect_all<float>(value);
    halves.expect_all<uint16_t>([&](uint16_t half) { return float_to_bf16(value(half)); });
  }
}

TEST(TensorSource, ReadsCodesOfAnyPartOfARowWithTheScaleOfTheirBlock) {
  constexpr size_t rows = 40, columns = 200, row_stride = 416, block = 32, first_column = 48, scale_columns = 8;
  std::mt19937 random(3);
  std::vector<uint8_t> bytes(rows * row_stride);
  // No E4M3 that is NaN.
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() & 0xf7);
  std::vector<float> scales(rows * scale_columns);
  for (float& scale : scales) scale = static_cast<float>(random() % 1000) / 64;
  for (const StoredDtype dtype : {StoredDtype::f8_e4m3, StoredDtype::f4_e2m1, StoredDtype::i8, StoredDtype::u8, StoredDtype::u4}) {
    const Scales of_blocks{test::weight_file(scales), 0, ScaleDtype::f32, scale_columns, 1, block, 0, 1, first_column};
    const TensorSource source{.rows = rows, .columns = columns, .origin = FileTensor{test::weight_file(bytes), 0, dtype, row_stride, 1, of_blocks}};
    check_tensor(source, "codes");
    const auto value = [&](size_t row, size_t column) {
      const size_t element = row * row_stride + column;
      const uint8_t byte = bytes[element * bits_of(dtype) / 8];
      const int nibble = byte >> (element % 2 * 4) & 15;
      const float code = dtype == StoredDtype::f8_e4m3   ? codes::e4m3[byte]
                         : dtype == StoredDtype::f4_e2m1 ? codes::e2m1[nibble]
                         : dtype == StoredDtype::i8      ? static_cast<float>(static_cast<int8_t>(byte))
                         : dtype == StoredDtype::u8      ? static_cast<float>(byte) - 128
                                                         : static_cast<float>(nibble) - 8;
      return code * scales[row * scale_columns + (first_column + column) / block];
    };
    for (const auto& [first, count] : {std::pair<size_t, size_t>{0, rows * columns}, {columns + 13, 1}, {15, columns}, {7 * columns - 1, 3 * columns}}) {
      std::vector<float> floats(count);
      std::vector<uint16_t> rounded(count);
      read_elements(source, first, count, floats.data());
      read_elements(source, first, count, rounded.data());
      for (size_t i = 0; i < count; ++i) {
        const float expected = value((first + i) / columns, (first + i) % columns);
        ASSERT_EQ(floats[i], expected) << "element " << first + i;
        ASSERT_EQ(rounded[i], float_to_bf16(expected)) << "element " << first + i;
      }
    }
  }
}

/** Codes of a matrix with scales of [rows, scale_columns] by blocks of so many columns, and what more there is. */
struct CodedMatrix {
  static constexpr size_t rows = 11, columns = 24, block = 8, scale_columns = 3;
  std::mt19937 random{5};
  std::vector<uint8_t> bytes = std::vector<uint8_t>(rows * columns);
  std::vector<float> scales = std::vector<float>(rows * scale_columns);

  CodedMatrix() {
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    for (float& scale : scales) scale = static_cast<float>(1 + random() % 1000) / 64;
  }

  static std::vector<float> floats_of(const TensorSource& source) {
    check_tensor(source, "codes");
    std::vector<float> floats(source.elements());
    read_elements(source, 0, floats.size(), floats.data());
    return floats;
  }

  Scales of_blocks() const { return {test::weight_file(scales), 0, ScaleDtype::f32, scale_columns, 1, block, 0, 1, 0}; }
  TensorSource source(StoredDtype dtype, const Scales& with) const {
    return {.rows = rows, .columns = columns, .origin = FileTensor{test::weight_file(bytes), 0, dtype, columns, 1, with}};
  }
  float code(StoredDtype dtype, size_t row, size_t column) const {
    const size_t element = row * columns + column;
    const uint8_t byte = bytes[element * bits_of(dtype) / 8];
    if (dtype == StoredDtype::i8) return static_cast<float>(static_cast<int8_t>(byte));
    return dtype == StoredDtype::u8 ? static_cast<float>(byte) : static_cast<float>(byte >> (element % 2 * 4) & 15);
  }
};

TEST(TensorSource, TakesZeroPointsFromIntegers) {
  CodedMatrix matrix;
  std::vector<int8_t> plain(CodedMatrix::rows * CodedMatrix::scale_columns);
  for (const auto& [dtype, bits] : {std::pair{StoredDtype::u4, 4}, {StoredDtype::u8, 8}, {StoredDtype::i8, 8}}) {
    for (int8_t& zero : plain) zero = static_cast<int8_t>(static_cast<int>(matrix.random() % (1u << bits)) - (1 << (bits - 1)));
    const size_t per_word = 32 / bits;
    // As pack_to_int32 of compressed-tensors lays them out: rows side by side in a word, above their value by half the range.
    std::vector<uint32_t> words((CodedMatrix::rows + per_word - 1) / per_word * CodedMatrix::scale_columns);
    for (size_t row = 0; row < CodedMatrix::rows; ++row) {
      for (size_t at = 0; at < CodedMatrix::scale_columns; ++at) {
        const auto above = static_cast<uint32_t>(plain[row * CodedMatrix::scale_columns + at] + (1 << (bits - 1)));
        words[row / per_word * CodedMatrix::scale_columns + at] |= above << (row % per_word * bits);
      }
    }
    for (const bool packed : {false, true}) {
      Scales scales = matrix.of_blocks();
      scales.zeros = ZeroPoints{packed ? test::weight_file(words) : test::weight_file(plain), 0, packed};
      const TensorSource source = matrix.source(dtype, scales);
      const std::vector<float> floats = CodedMatrix::floats_of(source);
      const int above = dtype == StoredDtype::i8 ? 0 : 1 << (bits - 1);
      for (size_t row = 0; row < source.rows; ++row) {
        for (size_t column = 0; column < source.columns; ++column) {
          const size_t number = row * CodedMatrix::scale_columns + column / CodedMatrix::block;
          const float value = matrix.code(dtype, row, column) - static_cast<float>(above + plain[number]);
          ASSERT_EQ(floats[row * source.columns + column], value * matrix.scales[number]) << row << ", " << column;
        }
      }
      ASSERT_EQ(columns_per_scale(source), CodedMatrix::block);
      ASSERT_TRUE(has_zeros(source));
      std::vector<uint8_t> codes(source.elements());
      std::vector<float> read(CodedMatrix::rows * CodedMatrix::scale_columns);
      std::vector<int8_t> zeros(read.size());
      read_codes(source, 0, source.rows, codes.data());
      read_scales(source, 0, source.rows, read.data());
      read_zeros(source, 0, source.rows, zeros.data());
      for (size_t i = 0; i < codes.size(); ++i) {
        const size_t number = i / source.columns * CodedMatrix::scale_columns + i % source.columns / CodedMatrix::block;
        const int value = bits == 4 ? codes[i] - 8 : static_cast<int8_t>(codes[i]);
        ASSERT_EQ(static_cast<float>(value - zeros[number]) * read[number], floats[i]) << i;
      }
    }
  }
  Scales scales = matrix.of_blocks();
  scales.zeros = ZeroPoints{test::weight_file(plain), 1, false};
  EXPECT_THROW(check_tensor(matrix.source(StoredDtype::i8, scales), "zeros beyond the file"), Error);
  scales.zeros->byte_offset = 0;
  EXPECT_THROW(check_tensor(matrix.source(StoredDtype::f8_e4m3, scales), "zeros of floats"), Error);
}

TEST(TensorSource, TakesTheGroupOfEachColumnWhereItIsTold) {
  CodedMatrix matrix;
  std::vector<uint32_t> groups(CodedMatrix::columns + 2);
  for (uint32_t& group : groups) group = static_cast<uint32_t>(matrix.random() % CodedMatrix::scale_columns);
  Scales scales = matrix.of_blocks();
  scales.groups = ColumnGroups{test::weight_file(groups), 0};
  // The matrix begins at a later column of the file.
  scales.first_column = 2;
  const TensorSource source = matrix.source(StoredDtype::u4, scales);
  const std::vector<float> floats = CodedMatrix::floats_of(source);
  for (size_t i = 0; i < floats.size(); ++i) {
    const size_t row = i / source.columns, column = i % source.columns;
    const float scale = matrix.scales[row * CodedMatrix::scale_columns + groups[2 + column]];
    ASSERT_EQ(floats[i], (matrix.code(StoredDtype::u4, row, column) - 8) * scale) << i;
  }
  ASSERT_TRUE(has_groups(source));
  EXPECT_TRUE(read_column_order(source).empty()) << "groups of any size";
  groups[7] = static_cast<uint32_t>(-1);
  scales.groups->file = test::weight_file(groups);
  try {
    CodedMatrix::floats_of(matrix.source(StoredDtype::u4, scales));
    FAIL() << "a group that is none was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("a column is of group -1; allowed: 0 to 2"), std::string::npos) << error.what();
  }
}

TEST(TensorSource, TellsTheOrderInWhichColumnsOfAScaleAreSideBySide) {
  CodedMatrix matrix;
  std::vector<uint32_t> groups(CodedMatrix::columns);
  for (size_t column = 0; column < groups.size(); ++column) groups[column] = static_cast<uint32_t>(column / CodedMatrix::block);
  std::ranges::shuffle(groups, matrix.random);
  Scales scales = matrix.of_blocks();
  scales.groups = ColumnGroups{test::weight_file(groups), 0};
  const TensorSource source = matrix.source(StoredDtype::u4, scales);
  ASSERT_EQ(columns_per_scale(source), CodedMatrix::block);
  const std::vector<uint32_t> order = read_column_order(source);
  ASSERT_EQ(order.size(), source.columns);
  for (size_t place = 0; place < order.size(); ++place) EXPECT_EQ(groups[order[place]], place / CodedMatrix::block);
  std::vector<float> read(matrix.scales.size());
  read_scales(source, 0, source.rows, read.data());
  EXPECT_EQ(read, matrix.scales);
}

TEST(TensorSource, TurnsCodesWithTheirScales) {
  // In the file [24, 11]: the matrix is its transpose, with scales for blocks of 8 x 5 of the file.
  CodedMatrix matrix;
  constexpr size_t file_rows = CodedMatrix::columns, file_columns = CodedMatrix::rows, scale_columns = 3;
  const Scales scales{test::weight_file(matrix.scales), 0, ScaleDtype::f32, scale_columns, 5, 8, 0, 1, 0, true};
  TensorSource source{.rows = file_columns, .columns = file_rows, .origin = FileTensor{test::weight_file(matrix.bytes), 0, StoredDtype::i8, 1, file_columns, scales}};
  check_tensor(source, "codes");
  turn_columns(source);
  const auto value = [&](size_t row, size_t column) {
    return static_cast<float>(static_cast<int8_t>(matrix.bytes[column * file_columns + row])) * matrix.scales[column / 8 * scale_columns + row / 5];
  };
  const std::vector<float> floats = CodedMatrix::floats_of(source);
  ASSERT_EQ(columns_per_scale(source), 8u);
  std::vector<uint8_t> codes(source.elements());
  std::vector<float> read(source.rows * 3);
  read_codes(source, 0, source.rows, codes.data());
  read_scales(source, 0, source.rows, read.data());
  for (size_t i = 0; i < floats.size(); ++i) {
    const size_t row = i / source.columns, column = i % source.columns;
    ASSERT_EQ(floats[i], value(row, column)) << i;
    ASSERT_EQ(static_cast<float>(static_cast<int8_t>(codes[i])) * read[row * 3 + column / 8], value(row, column)) << i;
  }
}

TEST(TensorSource, RefusesStridesThatLeadPastAnyFile) {
  constexpr size_t far = size_t{1} << 44;
  const auto refuses = [](size_t rows, size_t columns, size_t row_stride, size_t column_stride) {
    const TensorSource source{.rows = rows, .columns = columns, .origin = FileTensor{test::weight_file(std::vector<uint16_t>(2048)), 0, StoredDtype::bf16, row_stride, column_stride}};
    EXPECT_THROW(check_tensor(source, "w"), Error) << rows << " x " << columns;
  };
  // The last element's place would be 0 to a number of 64 bits.
  refuses((size_t{1} << 20) + 1, 2, far, 1);
  refuses((size_t{1} << 20) + 1, 2, 1, far);
  refuses(2, (size_t{1} << 20) + 1, 1, far);
  // Rows farther apart than columns that are apart.
  refuses(2, 2, 8, 4);

  const std::vector<uint8_t> bytes(64);
  const auto refuses_scales = [&](size_t columns, size_t block_columns, size_t first_row, size_t row_step, size_t first_column) {
    const Scales scales{test::weight_file(bytes), 0, ScaleDtype::f8_e8m0, columns, 1, block_columns, first_row, row_step, first_column};
    const TensorSource source{.rows = 3, .columns = 8, .origin = FileTensor{test::weight_file(bytes), 0, StoredDtype::i8, 8, 1, scales}};
    EXPECT_THROW(check_tensor(source, "w"), Error) << columns << " columns of scales";
  };
  refuses_scales(1, 8, 0, size_t{1} << 63, 0);
  refuses_scales(1, 8, SIZE_MAX - 1, 1, 0);
  refuses_scales(1, 8, 0, 1, SIZE_MAX - 3);
  refuses_scales(size_t{1} << 40, 8, size_t{1} << 24, 1, 0);
}

TEST(TensorSource, RefusesCodesOfHalfAByteWhoseColumnsAreApart) {
  const Scales scale{test::weight_file(std::vector<float>{1}), 0, ScaleDtype::f32, 1, 8, 8, 0, 1, 0};
  TensorSource source{.rows = 4, .columns = 4, .origin = FileTensor{test::weight_file(std::vector<uint8_t>(16)), 0, StoredDtype::u4, 4, 1, scale}};
  EXPECT_NO_THROW(check_tensor(source, "codes"));
  auto& tensor = std::get<FileTensor>(source.origin);
  std::swap(tensor.row_stride, tensor.column_stride);
  EXPECT_THROW(check_tensor(source, "codes"), Error);
}

TEST(TensorSource, RefusesATensorThatEndsPastItsFile) {
  TensorSource source = stored_tensor(std::vector<float>(6), StoredDtype::f32);
  source.rows = 2;
  source.columns = 3;
  std::get<FileTensor>(source.origin).row_stride = 3;
  EXPECT_NO_THROW(check_tensor(source, "w"));
  source.rows = 3;
  EXPECT_THROW(check_tensor(source, "w"), Error);
  source.rows = 2;
  std::get<FileTensor>(source.origin).byte_offset = SIZE_MAX - 2;
  EXPECT_THROW(check_tensor(source, "w"), Error);
  source.rows = SIZE_MAX / 2;
  EXPECT_THROW(check_tensor(source, "w"), Error);
}

}  // namespace
}  // namespace switchyard
