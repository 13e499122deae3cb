#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "kernels/bf16.h"

namespace switchyard::test {

/** `count` BF16 values, uniform in [-scale, scale). */
inline std::vector<std::uint16_t> random_bf16(std::mt19937_64& random, std::size_t count, float scale = 1) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  std::vector<std::uint16_t> values(count);
  for (auto& value : values) value = float_to_bf16(uniform(random));
  return values;
}

inline std::vector<float> random_floats(std::mt19937_64& random, std::size_t count, float low, float high) {
  std::uniform_real_distribution<float> uniform(low, high);
  std::vector<float> values(count);
  for (auto& value : values) value = uniform(random);
  return values;
}

inline std::vector<float> widened(const std::vector<std::uint16_t>& bits) {
  std::vector<float> values(bits.size());
  for (std::size_t i = 0; i < bits.size(); ++i) values[i] = bf16_to_float(bits[i]);
  return values;
}

/** Half the distance of neighbouring BF16 values at `value`, and a little for float32 sums before the rounding. */
inline double bf16_tolerance(double value) { return std::abs(value) * 0x1.02p-8 + 1e-30; }

}  // namespace switchyard::test
