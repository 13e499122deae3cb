#pragma once

#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace switchyard {

/**
 * Whether results of so many bytes should be written past the caches: they are longer than a core's cache, and whoever
 * reads them does so on another core or device. A write that goes through the caches first reads what it overwrites.
 */
inline bool worth_streaming(std::size_t bytes) { return bytes >= (std::size_t{2} << 20); }

/** After writes past the caches: other threads see them with what is written from here on. */
inline void streaming_done() { _mm_sfence(); }

/** memcpy. `streaming`: it writes past the caches, and ends with streaming_done. */
void copy(void* to, const void* from, std::size_t bytes, bool streaming);

inline constexpr std::size_t line_bytes = 64;

struct Span {
  std::uint8_t* to;
  const std::uint8_t* from;
};

/**
 * Copies spans of `bytes` each past the caches, all at once: a processor fetches ahead within a page only, so several pages
 * are under way. `bytes` are whole lines, and `to` begins with one. Without streaming_done.
 */
void copy_together(const std::array<Span, 4>& spans, std::size_t bytes);

}  // namespace switchyard
