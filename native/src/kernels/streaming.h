#pragma once

#include <immintrin.h>

#include <cstddef>

namespace switchyard {

/**
 * Whether results of so many bytes should be written past the caches: they are longer than a core's cache, and whoever
 * reads them does so on another core or device. A write that goes through the caches first reads what it overwrites.
 */
inline bool worth_streaming(std::size_t bytes) { return bytes >= (std::size_t{4} << 20); }

/** After writes past the caches: other threads see them with what is written from here on. */
inline void streaming_done() { _mm_sfence(); }

/** memcpy. `streaming`: it writes past the caches, and ends with streaming_done. */
void copy(void* to, const void* from, std::size_t bytes, bool streaming);

}  // namespace switchyard
