#include "reference/matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace switchyard {

namespace {

constexpr size_t tile_rows = 16;

/** Elements first to first + count - 1. BF16 is the upper half of a float, so the conversion is exact. */
void read_doubles(const TensorSource& source, size_t first, size_t count, Precision precision, double* out) {
  if (precision == Precision::stored) {
    std::vector<float> values(count);
    read_elements(source, first, count, values.data());
    std::copy(values.begin(), values.end(), out);
    return;
  }
  std::vector<uint16_t> bits(count);
  read_elements(source, first, count, bits.data());
  for (size_t i = 0; i < count; ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
}

/** Calls body(first row, rows, count) for tiles that cover the matrix, over the pool. */
template <typename Body>
void for_tiles(const TensorSource& matrix, Precision precision, ThreadPool& pool, const Body& body) {
  pool.parallel_for((matrix.rows + tile_rows - 1) / tile_rows, [&](size_t tile) {
    const size_t first = tile * tile_rows;
    const size_t count = std::min(tile_rows, matrix.rows - first);
    std::vector<double> values(count * matrix.columns);
    read_doubles(matrix, first * matrix.columns, values.size(), precision, values.data());
    body(first, values.data(), count);
  });
}

}  // namespace

// Eight partial sums, so that additions need not wait for each other.
__attribute__((target("avx2"))) double dot(const double* a, const double* b, size_t count) {
  double sums[8] = {};
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  for (; i < count; ++i) sums[i % 8] += a[i] * b[i];
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

std::vector<double> read_doubles(const TensorSource& source, Precision precision) {
  std::vector<double> values(source.elements());
  read_doubles(source, 0, values.size(), precision, values.data());
  return values;
}

std::vector<double> multiply(const TensorSource& matrix, const double* inputs, size_t input_count, Precision precision,
                             ThreadPool& pool) {
  const size_t columns = matrix.columns;
  std::vector<double> products(input_count * matrix.rows);
  for_tiles(matrix, precision, pool, [&](size_t first, const double* rows, size_t count) {
    for (size_t input = 0; input < input_count; ++input) {
      for (size_t row = 0; row < count; ++row) {
        products[input * matrix.rows + first + row] = dot(rows + row * columns, inputs + input * columns, columns);
      }
    }
  });
  return products;
}

double largest_row_norm(const TensorSource& matrix, Precision precision, ThreadPool& pool) {
  std::vector<double> norms(matrix.rows);
  for_tiles(matrix, precision, pool, [&](size_t first, const double* rows, size_t count) {
    for (size_t row = 0; row < count; ++row) {
      const double* const values = rows + row * matrix.columns;
      norms[first + row] = std::sqrt(dot(values, values, matrix.columns));
    }
  });
  return *std::max_element(norms.begin(), norms.end());
}

}  // namespace switchyard
