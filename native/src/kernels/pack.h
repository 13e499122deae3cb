#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

/**
 * Packs rows, by any range of those packed: output row i = row indices[i] of `rows`, for i in [first, first + count).
 * `rows` and `output` have rows of `row_bytes`, side by side; `output` is for all of `indices`.
 */
void pack_rows(const void* rows, std::size_t row_bytes, std::span<const std::uint32_t> indices, std::size_t first,
               std::size_t count, void* output);

}  // namespace switchyard
