#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

/**
 * RMSNorm: output[r] = rows[r] / sqrt(mean(rows[r]^2) + epsilon) * weight, in float32, rounded once to BF16.
 * `rows` and `output` are [row_count, hidden] (they may be the same memory), `weight` is [hidden].
 * A row's result depends on nothing but the row. Returns the number of rows that hold NaN or infinity. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization".
 */
std::size_t normalize_rows(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden,
                           const std::uint16_t* weight, float epsilon, std::uint16_t* output);

}  // namespace switchyard
