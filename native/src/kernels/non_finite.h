#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

/** The number of rows of [row_count, hidden] BF16 that hold NaN or infinity. */
std::size_t count_non_finite(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden);

/** The first of those rows; `row_count` if there is none. */
std::size_t find_non_finite(const std::uint16_t* rows, std::size_t row_count, std::size_t hidden);

/** The number of values that are NaN or infinite. */
std::size_t count_non_finite_values(const std::uint16_t* values, std::size_t count);

}  // namespace switchyard
