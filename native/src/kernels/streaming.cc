#include "kernels/streaming.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/lanes.h"

namespace switchyard {
namespace {

SWITCHYARD_AVX2 void copy_streaming(void* to, const void* from, std::size_t bytes) {
  constexpr std::size_t line = 64;
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  const std::size_t head = std::min(bytes, (line - reinterpret_cast<std::uintptr_t>(out) % line) % line);
  std::memcpy(out, in, head);
  std::size_t i = head;
  for (; i + line <= bytes; i += line) {
    const auto* source = reinterpret_cast<const __m256i*>(in + i);
    auto* target = reinterpret_cast<__m256i*>(out + i);
    const __m256i low = _mm256_loadu_si256(source), high = _mm256_loadu_si256(source + 1);
    _mm256_stream_si256(target, low);
    _mm256_stream_si256(target + 1, high);
  }
  std::memcpy(out + i, in + i, bytes - i);
  streaming_done();
}

}  // namespace

void copy(void* to, const void* from, std::size_t bytes, bool streaming) {
  if (streaming) {
    copy_streaming(to, from, bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace switchyard
