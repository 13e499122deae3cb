#include "kernels/pack.h"

#include "kernels/streaming.h"

namespace switchyard {

void pack_rows(const void* rows, std::size_t row_bytes, std::span<const std::uint32_t> indices, std::size_t first,
               std::size_t count, void* output) {
  const bool streaming = worth_streaming(indices.size() * row_bytes);
  const auto span = [&](std::size_t i) {
    return Span{static_cast<std::uint8_t*>(output) + i * row_bytes,
                static_cast<const std::uint8_t*>(rows) + indices[i] * row_bytes};
  };
  const bool whole_lines = (reinterpret_cast<std::uintptr_t>(output) | row_bytes) % line_bytes == 0;
  const std::size_t end = first + count;
  std::size_t i = first;
  if (streaming && whole_lines) {
    for (; i + 4 <= end; i += 4) copy_together({span(i), span(i + 1), span(i + 2), span(i + 3)}, row_bytes);
    streaming_done();
  }
  for (; i < end; ++i) copy(span(i).to, span(i).from, row_bytes, streaming);
}

}  // namespace switchyard
