#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/row_parts.h"

namespace switchyard {

/**
 * RMSNorm: output[r] = rows[r] / sqrt(mean(rows[r]^2) + epsilon) * (weight + offset), in float32, rounded once to BF16.
 * `rows` and `output` are [row_count, hidden] (they may be the same memory), `weight` is [hidden].
 * A row's result depends on nothing but the row. Returns the number of rows that hold NaN or infinity. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization".
 */
std::size_t normalize_rows(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden,
                           const std::uint16_t* weight, float epsilon, std::uint16_t* output, float offset = -0.0f);

/** 1 / sqrt(mean of squares + epsilon) of each row. */
std::vector<float> row_factors(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden, float epsilon);

/** The same, of a few rows at a time whose parts are normalised, and written, as a gate takes them. */
class NormalizedRows final : public RowParts {
 public:
  /** `streaming`: output is written past the caches; its rows are then whole lines of the cache. */
  NormalizedRows(std::size_t hidden, const std::uint16_t* weight, float epsilon, bool streaming, float offset = -0.0f)
      : hidden_(hidden), weight_(weight), epsilon_(epsilon), offset_(offset), streaming_(streaming) {}

  /** Turns to other rows. Returns the number of those that hold NaN or infinity. */
  std::size_t begin(const std::uint16_t* rows, std::size_t row_count, std::uint16_t* output);

  void widen(std::size_t row, std::size_t first, std::size_t count, float* even, float* odd) override;
  void pair(std::size_t row, std::size_t first, std::size_t count, std::uint32_t* to) override;

 private:
  template <typename Sink>
  void pass(std::size_t row, std::size_t first, std::size_t count, Sink sink) const;

  std::size_t hidden_;
  const std::uint16_t* weight_;
  float epsilon_;
  /** Negative zero, which changes nothing, where there is none. */
  float offset_;
  bool streaming_;
  std::uint16_t* output_ = nullptr;
  struct Row {
    const std::uint16_t* values;
    float factor;
  };
  std::vector<Row> rows_;
  /** Rows that had to be made smaller. */
  std::vector<std::vector<std::uint16_t>> smaller_;
};

}  // namespace switchyard
