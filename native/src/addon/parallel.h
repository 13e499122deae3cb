#pragma once

#include <algorithm>
#include <cstddef>

#include "addon/process.h"

namespace switchyard::addon {

/** Calls body(first, count) for ranges that cover 0 to count - 1, over the pool; a range has about `part` elements. */
template <typename Body>
void for_ranges(size_t count, size_t part, const Body& body) {
  pool().parallel_for((count + part - 1) / part, [&](size_t index) {
    const size_t first = index * part;
    body(first, std::min(part, count - first));
  });
}

/** for_ranges over rows. A range is at least 64 rows and about 256 KiB: enough to outweigh the hand-over. */
template <typename Body>
void for_rows(size_t row_count, size_t hidden, const Body& body) {
  constexpr size_t elements_per_range = 128 * 1024;
  for_ranges(row_count, std::max<size_t>(64, elements_per_range / hidden), body);
}

}  // namespace switchyard::addon
