#include "kernels/pack.h"

#include "kernels/streaming.h"

namespace switchyard {

void pack_rows(const void* rows, std::size_t row_bytes, std::span<const std::uint32_t> indices, std::size_t first,
               std::size_t count, void* output) {
  const bool streaming = worth_streaming(indices.size() * row_bytes);
  for (std::size_t i = first; i < first + count; ++i) {
    auto* to = static_cast<std::byte*>(output) + i * row_bytes;
    const auto* from = static_cast<const std::byte*>(rows) + indices[i] * row_bytes;
    copy(to, from, row_bytes, streaming);
  }
}

}  // namespace switchyard
