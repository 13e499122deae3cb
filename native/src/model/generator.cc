#include "model/generator.h"

#include <algorithm>

namespace switchyard {

namespace {

/** Values that share one 64-bit key; within a block the hash is 32 bits wide, which vectorises. */
constexpr uint64_t block_values = 4096;

/** The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators"). */
uint64_t mix64(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

/** The 32-bit hash with the multipliers of C. Wellons' "Prospecting for Hash Functions", keyed in the middle. */
inline uint32_t mix32(uint32_t value, uint32_t key) {
  value = (value ^ (value >> 16)) * 0x7feb352du;
  value += key;
  value = (value ^ (value >> 15)) * 0x846ca68bu;
  return value ^ (value >> 16);
}

inline uint32_t value_bits(uint64_t block_key, uint32_t index) {
  return mix32(static_cast<uint32_t>(block_key) + index * 0x9e3779b9u, static_cast<uint32_t>(block_key >> 32));
}

__attribute__((target("avx2"))) void fill(uint64_t block_key, uint32_t first, uint32_t count, float* out) {
  for (uint32_t i = 0; i < count; ++i) {
    const auto value = static_cast<int32_t>(value_bits(block_key, first + i)) >> 8;
    out[i] = static_cast<float>(value) * 0x1p-23f;
  }
}

}  // namespace

Generator::Generator(uint64_t seed, Domain domain, uint64_t stream)
    : key_(mix64(mix64(mix64(seed) ^ static_cast<uint64_t>(domain)) ^ stream)) {}

void Generator::uniform(uint64_t first, size_t count, float* out) const {
  while (count > 0) {
    const uint64_t offset = first % block_values;
    const auto part = std::min<size_t>(count, block_values - offset);
    fill(mix64(key_ ^ (first / block_values)), static_cast<uint32_t>(offset), static_cast<uint32_t>(part), out);
    first += part;
    out += part;
    count -= part;
  }
}

uint32_t Generator::bits(uint64_t index) const {
  return value_bits(mix64(key_ ^ (index / block_values)), static_cast<uint32_t>(index % block_values));
}

}  // namespace switchyard
