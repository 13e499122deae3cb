#include "kernels/non_finite.h"

#include "kernels/lanes.h"

namespace switchyard {
namespace {

/** Whether the row holds NaN or infinity. */
SWITCHYARD_AVX2 bool is_non_finite(const std::uint16_t* row, std::size_t hidden) {
  constexpr std::size_t step = 4;
  __m256i found = _mm256_setzero_si256();
  std::size_t i = 0;
  for (; i + step * lanes::width <= hidden; i += step * lanes::width) {
    for (std::size_t s = 0; s < step; ++s) {
      found = lanes::larger_magnitude(found, lanes::load(row + i + s * lanes::width));
    }
  }
  for (; i < hidden; i += lanes::width) {
    const std::size_t count = hidden - i < lanes::width ? hidden - i : lanes::width;
    found = lanes::larger_magnitude(found, lanes::load_tail(row + i, count));
  }
  return lanes::has_non_finite(found);
}

}  // namespace

SWITCHYARD_AVX2 std::size_t count_non_finite_values(const std::uint16_t* values, std::size_t count) {
  const __m256i exponent = _mm256_set1_epi16(0x7f80);
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; i += lanes::width) {
    const std::size_t part = count - i < lanes::width ? count - i : lanes::width;
    const __m256i bits = part == lanes::width ? lanes::load(values + i) : lanes::load_tail(values + i, part);
    const __m256i non_finite = _mm256_cmpeq_epi16(_mm256_and_si256(bits, exponent), exponent);
    // Two bits for every lane.
    found += static_cast<std::size_t>(__builtin_popcount(static_cast<unsigned>(_mm256_movemask_epi8(non_finite)))) / 2;
  }
  return found;
}

std::size_t count_non_finite(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden) {
  std::size_t non_finite = 0;
  for (std::size_t r = 0; r < row_count; ++r) non_finite += is_non_finite(rows + r * hidden, hidden);
  return non_finite;
}

std::size_t find_non_finite(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden) {
  std::size_t r = 0;
  while (r < row_count && !is_non_finite(rows + r * hidden, hidden)) ++r;
  return r;
}

}  // namespace switchyard
