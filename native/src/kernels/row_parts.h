#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lanes.h"

namespace switchyard {

/** Rows in BF16 as a gate takes them: part by part, in the order of elements, each part once. */
class RowParts {
 public:
  virtual ~RowParts() = default;
  /**
   * Elements [first, first + count) of a row as floats, those of even index to `even`, the others to `odd`, from `first`
   * on, which is even. Both get zeros up to a multiple of 8.
   */
  virtual void widen(std::size_t row, std::size_t first, std::size_t count, float* even, float* odd) = 0;
  /** The same elements two by two as they are, the even one in the lower half. Gets zeros up to a multiple of 8. */
  virtual void pair(std::size_t row, std::size_t first, std::size_t count, std::uint32_t* to) = 0;
};

namespace lanes {

/** Takes 16 elements at a time, from element i of a part on, as RowParts::widen has them. */
struct WideSink {
  float* even;
  float* odd;
  SWITCHYARD_AVX2 inline void take(std::size_t i, __m256i bits) const {
    const Pair wide = lanes::widen(bits);
    _mm256_storeu_ps(even + i / 2, wide.even);
    _mm256_storeu_ps(odd + i / 2, wide.odd);
  }
};

/** As RowParts::pair has them. */
struct PairSink {
  std::uint32_t* to;
  SWITCHYARD_AVX2 inline void take(std::size_t i, __m256i bits) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i / 2), bits);
  }
};

}  // namespace lanes

/** Rows of [row_count, hidden], as they are. */
class PlainRows final : public RowParts {
 public:
  PlainRows(const std::uint16_t* rows, std::size_t hidden) : rows_(rows), hidden_(hidden) {}
  void widen(std::size_t row, std::size_t first, std::size_t count, float* even, float* odd) override {
    pass(row, first, count, lanes::WideSink{even, odd});
  }
  void pair(std::size_t row, std::size_t first, std::size_t count, std::uint32_t* to) override {
    pass(row, first, count, lanes::PairSink{to});
  }

 private:
  template <typename Sink>
  SWITCHYARD_AVX2 void pass(std::size_t row, std::size_t first, std::size_t count, Sink sink) const {
    const std::uint16_t* from = rows_ + row * hidden_ + first;
    std::size_t i = 0;
    for (; i + lanes::width <= count; i += lanes::width) sink.take(i, lanes::load(from + i));
    if (i < count) sink.take(i, lanes::load_tail(from + i, count - i));
  }

  const std::uint16_t* rows_;
  std::size_t hidden_;
};

}  // namespace switchyard
