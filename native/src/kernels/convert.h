#pragma once

#include <cstddef>
#include <cstdint>

namespace switchyard {

/** What a client's program may keep the elements of rows as; rows of the cluster are BF16. */
enum class RowDtype { bf16, f16, f32 };

inline constexpr std::size_t bytes_of(RowDtype dtype) { return dtype == RowDtype::f32 ? 4 : 2; }

/**
 * Nearest BF16 of `count` elements, ties to even, as float_to_bf16 gives it; those that are BF16 stay as they are. `from` needs no
 * alignment. The same bits on every processor.
 */
void narrow_rows(const std::byte* from, RowDtype dtype, std::size_t count, std::uint16_t* to);

/**
 * `count` BF16 elements as float32, which is exact, or as the nearest float16, ties to even: above its range infinity, below it
 * subnormal or zero. `to` needs no alignment. The same bits on every processor.
 */
void widen_rows(const std::uint16_t* from, std::size_t count, RowDtype dtype, std::byte* to);

}  // namespace switchyard
