#include "model/tokens.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "model/generator.h"
#include "runtime/error.h"

namespace switchyard {

namespace {

constexpr size_t topics_max = 65536;
constexpr double skew_max = 16;
constexpr size_t piece = 4096;

/**
 * base^exponent from multiplications and square roots alone, which IEEE 754 rounds exactly: the library's pow may
 * differ in the last bit from one processor to the next, and then a token could change its topic.
 */
double power(double base, double exponent) {
  double whole = std::floor(exponent);
  double fraction = exponent - whole;
  double result = 1;
  for (; whole > 0; whole -= 1) result *= base;
  double root = base;
  for (int bit = 0; bit < 32 && fraction > 0; ++bit) {
    root = std::sqrt(root);
    fraction *= 2;
    if (fraction >= 1) {
      result *= root;
      fraction -= 1;
    }
  }
  return result;
}

__attribute__((target("avx2"))) void add_and_round(const float* centre, const float* noise, size_t count,
                                                   uint16_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(centre[i] + noise[i]);
    out[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

}  // namespace

TokenSource::TokenSource(uint64_t seed, size_t hidden, double skew, size_t topics) : seed_(seed), hidden_(hidden) {
  if (hidden < 1) throw_invalid("hidden", hidden, "1 or more");
  if (topics < 1 || topics > topics_max) throw_invalid("topics", topics, "1 to " + std::to_string(topics_max));
  if (!(skew >= 0 && skew <= skew_max)) throw_invalid("skew", skew, "0 to 16");
  std::vector<double> sums(topics);
  double sum = 0;
  for (size_t rank = 0; rank < topics; ++rank) sums[rank] = sum += 1 / power(static_cast<double>(rank + 1), skew);
  thresholds_.resize(topics);
  for (size_t rank = 0; rank < topics; ++rank) thresholds_[rank] = static_cast<uint64_t>(sums[rank] / sum * 0x1p32);
  thresholds_.back() = uint64_t{1} << 32;
}

size_t TokenSource::topic(uint64_t token) const {
  const uint64_t bits = Generator(seed_, Generator::Domain::topics, 0).bits(token);
  return std::upper_bound(thresholds_.begin(), thresholds_.end(), bits) - thresholds_.begin();
}

void TokenSource::read(uint64_t first_token, size_t count, uint16_t* out) const {
  std::array<float, piece> centre;
  std::array<float, piece> noise;
  for (uint64_t token = first_token; token < first_token + count; ++token) {
    const Generator centres(seed_, Generator::Domain::centres, topic(token));
    const Generator noises(seed_, Generator::Domain::noise, token);
    for (size_t done = 0; done < hidden_; done += piece) {
      const size_t part = std::min(piece, hidden_ - done);
      centres.uniform(done, part, centre.data());
      noises.uniform(done, part, noise.data());
      add_and_round(centre.data(), noise.data(), part, out);
      out += part;
    }
  }
}

}  // namespace switchyard
