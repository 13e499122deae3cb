#include "kernels/streaming.h"

#include <algorithm>
#include <cstring>

#include "kernels/lanes.h"

namespace switchyard {
namespace {

constexpr std::size_t page_bytes = 4096;

SWITCHYARD_AVX2 inline void copy_line(std::uint8_t* to, const std::uint8_t* from) {
  const auto* source = reinterpret_cast<const __m256i*>(from);
  auto* target = reinterpret_cast<__m256i*>(to);
  const __m256i low = _mm256_loadu_si256(source), high = _mm256_loadu_si256(source + 1);
  _mm256_stream_si256(target, low);
  _mm256_stream_si256(target + 1, high);
}

SWITCHYARD_AVX2 void copy_streaming(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  const std::size_t head = std::min(bytes, -reinterpret_cast<std::uintptr_t>(to) % line_bytes);
  std::memcpy(to, from, head);
  std::size_t i = head;
  for (; i + 4 * page_bytes <= bytes; i += 4 * page_bytes) {
    std::array<Span, 4> pages;
    for (std::size_t p = 0; p < pages.size(); ++p) pages[p] = {to + i + p * page_bytes, from + i + p * page_bytes};
    copy_together(pages, page_bytes);
  }
  for (; i + line_bytes <= bytes; i += line_bytes) copy_line(to + i, from + i);
  std::memcpy(to + i, from + i, bytes - i);
  streaming_done();
}

}  // namespace

SWITCHYARD_AVX2 void copy_together(const std::array<Span, 4>& spans, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += line_bytes) {
#pragma GCC unroll 4
    for (const Span& span : spans) copy_line(span.to + i, span.from + i);
  }
}

void copy(void* to, const void* from, std::size_t bytes, bool streaming) {
  if (streaming) {
    copy_streaming(static_cast<std::uint8_t*>(to), static_cast<const std::uint8_t*>(from), bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace switchyard
