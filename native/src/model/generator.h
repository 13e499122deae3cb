#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

/**
 * A counter-based generator: value i of a stream is a hash of (seed, domain, stream, i), so any part can be made by
 * any thread, and every machine makes the same values: integer arithmetic, then floats that are exact.
 */
class Generator {
 public:
  /** Streams of different domains are independent. */
  enum class Domain : uint64_t { weights = 1, topics = 2, centres = 3, noise = 4 };

  Generator(uint64_t seed, Domain domain, uint64_t stream);

  /** Values first to first + count - 1: multiples of 2^-23, uniform in [-1, 1). */
  void uniform(uint64_t first, size_t count, float* out) const;
  /** 32 uniform bits: value `index`. */
  uint32_t bits(uint64_t index) const;

 private:
  uint64_t key_;
};

}  // namespace switchyard
