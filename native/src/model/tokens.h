#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace switchyard {

/**
 * Synthetic token embeddings with uneven topics, so that a gate's load is uneven. Element e of token t is
 * centre(topic(t), e) + noise(t, e), both uniform in [-1, 1), rounded once to BF16. Topics follow a Zipf law:
 * topic r has a share proportional to (r + 1)^-skew. A token depends on the seed and its index alone.
 */
class TokenSource {
 public:
  /** Throws INVALID_ARGUMENT unless 1 <= topics <= 65536, 0 <= skew <= 16 and hidden >= 1. */
  TokenSource(uint64_t seed, size_t hidden, double skew, size_t topics);

  size_t topic(uint64_t token) const;
  /** Writes [count, hidden] rows. Any number of threads may call it. */
  void read(uint64_t first_token, size_t count, uint16_t* out) const;

 private:
  uint64_t seed_;
  size_t hidden_;
  /** Cumulative shares, scaled to 2^32. */
  std::vector<uint64_t> thresholds_;
};

}  // namespace switchyard
