#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/kernels.h"
#include "kernels/bf16.h"

namespace switchyard::test {

using Rows = std::vector<uint16_t>;

constexpr uint16_t poison = 0x7fbb;

inline Rows random_values(size_t count, float scale, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Rows values(count);
  for (uint16_t& value : values) value = float_to_bf16(uniform(random));
  return values;
}

inline MatrixSource source_of(const Rows& values, size_t rows, size_t columns) {
  return {.rows = rows, .columns = columns, .read = [&values, columns](size_t first, size_t count, uint16_t* out) {
            std::copy_n(values.begin() + first * columns, count * columns, out);
          }};
}

/** The weights of one expert, and what it computes in float64. */
struct Model {
  Activation activation;
  size_t hidden, ffn;
  Rows gate, up, down;

  Model(Activation kind, size_t hidden_size, size_t ffn_size, unsigned seed = 1)
      : activation(kind), hidden(hidden_size), ffn(ffn_size) {
    std::mt19937 random(seed);
    const float scale = 2.0f / std::sqrt(static_cast<float>(hidden));
    gate = random_values(ffn * hidden, scale, random);
    up = random_values(ffn * hidden, scale, random);
    down = random_values(hidden * ffn, 2.0f / std::sqrt(static_cast<float>(ffn)), random);
  }

  ExpertSource source() const {
    ExpertSource result{.activation = activation,
                        .gate = std::nullopt,
                        .up = source_of(up, ffn, hidden),
                        .down = source_of(down, hidden, ffn)};
    if (activation == Activation::swiglu) result.gate = source_of(gate, ffn, hidden);
    return result;
  }

  double dot(const Rows& matrix, size_t row, const std::vector<double>& x) const {
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += x[i] * bf16_to_float(matrix[row * x.size() + i]);
    return sum;
  }

  std::vector<double> reference(const uint16_t* row) const {
    std::vector<double> x(hidden);
    for (size_t i = 0; i < hidden; ++i) x[i] = bf16_to_float(row[i]);
    return reference(x);
  }

  std::vector<double> reference(const std::vector<double>& x) const {
    std::vector<double> h(ffn), y(hidden);
    for (size_t i = 0; i < ffn; ++i) {
      const double u = dot(up, i, x);
      if (activation == Activation::swiglu) {
        const double g = dot(gate, i, x);
        h[i] = g / (1 + std::exp(-g)) * u;
      } else {
        h[i] = u / 2 * std::erfc(-u / std::sqrt(2.0));
      }
    }
    for (size_t i = 0; i < hidden; ++i) y[i] = dot(down, i, h);
    return y;
  }
};

inline double relative_error(const uint16_t* got, const std::vector<double>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(bf16_to_float(got[i]) - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / norm);
}

inline std::vector<uint32_t> all_indices(size_t count) {
  std::vector<uint32_t> indices(count);
  for (size_t i = 0; i < count; ++i) indices[i] = static_cast<uint32_t>(i);
  return indices;
}

/**
 * Output rows of the chosen input rows, in poisoned memory with a row to spare before and after. It begins at a cache line, as slabs do, where
 * the number of rows is even, and beside one where it is odd.
 */
inline Rows forward(ExpertBackend& backend, const Expert& expert, const Rows& rows, const std::vector<uint32_t>& indices,
             const float* weights = nullptr) {
  constexpr size_t line_bytes = 64;
  const size_t hidden = expert.hidden();
  const size_t count = (indices.size() + 2) * hidden;
  Rows memory(count + line_bytes, poison);
  const size_t beyond = reinterpret_cast<uintptr_t>(memory.data()) % line_bytes / sizeof(uint16_t);
  const auto output = memory.begin() + (line_bytes / sizeof(uint16_t) - beyond + indices.size() % 2);
  const ExpertInput input{.rows = rows.data(),
                          .row_count = rows.size() / hidden,
                          .indices = indices,
                          .output = &*output,
                          .output_row_count = indices.size() + 2,
                          .output_row = 1,
                          .input_weights = weights};
  EXPECT_GE(backend.forward(expert, {&input, 1}), 0.0);
  for (size_t i = 0; i < hidden; ++i) {
    EXPECT_EQ(output[i], poison) << "the row before the output was written";
    EXPECT_EQ(output[count - 1 - i], poison) << "the row after the output was written";
  }
  return Rows(output + hidden, output + (count - hidden));
}

/** Computes so many of the rows, in any order, on one to three threads, and expects of each the bits that it has alone. */
inline void expect_the_bits_of_rows_alone(const ExpertSource& source, const Rows& rows, const std::vector<size_t>& counts, std::mt19937& random) {
  const size_t hidden = source.latent ? source.latent->input.columns : source.up.columns;
  const auto single = create_cpu_backend(1);
  const auto single_expert = single->load(source);
  Rows expected;
  for (const uint32_t row : all_indices(rows.size() / hidden)) {
    const Rows alone = forward(*single, *single_expert, rows, {row});
    expected.insert(expected.end(), alone.begin(), alone.end());
  }
  for (const int threads : {1, 2, 3}) {
    const auto backend = create_cpu_backend(threads);
    const auto expert = backend->load(source);
    for (const size_t count : counts) {
      std::vector<uint32_t> indices(count);
      for (uint32_t& index : indices) index = static_cast<uint32_t>(random() % (rows.size() / hidden));
      const Rows output = forward(*backend, *expert, rows, indices);
      for (size_t i = 0; i < count; ++i) {
        ASSERT_TRUE(std::equal(output.begin() + i * hidden, output.begin() + (i + 1) * hidden, expected.begin() + indices[i] * hidden))
            << count << " rows, " << threads << " threads, row " << i << " from " << indices[i];
      }
    }
  }
}

/** Runs on one instruction set at a time. */
class CpuExperts : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    for (const cpu::Kernels* kernels : cpu::all_kernels()) {
      if (kernels->name == GetParam() && !kernels->supported()) {
        GTEST_SKIP() << "this CPU lacks " << GetParam() << ": compiled, not run";
      }
    }
    setenv("SWITCHYARD_CPU_ISA", GetParam().c_str(), 1);
  }
  void TearDown() override { unsetenv("SWITCHYARD_CPU_ISA"); }
};

inline std::vector<std::string> names_of_all() {
  std::vector<std::string> names;
  for (const cpu::Kernels* kernels : cpu::all_kernels()) names.emplace_back(kernels->name);
  return names;
}

/** The name of a parametrised test's instruction set as GoogleTest allows it. */
inline std::string name_of_isa(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

}  // namespace switchyard::test
