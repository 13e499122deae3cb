#include "ucx/selection.h"

#include <cstring>

#include "kernels/pack.h"

namespace switchyard::ucx {

Message select_rows(SlabArena& arena, SlabRef source, size_t row_bytes, std::span<const uint32_t> indices,
                    std::span<const uint8_t> metadata) {
  if (row_bytes == 0 || row_bytes > source->size()) {
    throw_invalid("rowBytes", row_bytes, "1 to " + std::to_string(source->size()) + ", the size of the slab");
  }
  const size_t rows = source->size() / row_bytes;
  for (const uint32_t index : indices) {
    if (index >= rows) throw_invalid("indices", index, "below " + std::to_string(rows) + ", the rows of the slab");
  }
  const size_t offset = indices_offset(metadata.size());
  SlabRef slab = arena.allocate(offset + indices.size_bytes());
  std::memcpy(slab->data(), metadata.data(), metadata.size());
  std::memcpy(slab->data() + offset, indices.data(), indices.size_bytes());
  return {.slab = std::move(slab),
          .row_bytes = indices.size() * row_bytes,
          .meta_bytes = metadata.size(),
          .source = std::move(source),
          .source_row_bytes = row_bytes};
}

Message gathered(SlabArena& arena, const Message& message) {
  const size_t row_bytes = message.source_row_bytes;
  const size_t rows = message.row_bytes / row_bytes;
  const auto* indices =
      reinterpret_cast<const uint32_t*>(message.slab->data() + indices_offset(message.meta_bytes));
  SlabRef slab = arena.allocate(message.row_bytes, message.meta_bytes);
  pack_rows(message.source->data(), row_bytes, {indices, rows}, 0, rows, slab->data());
  std::memcpy(slab->data() + message.row_bytes, message.slab->data(), message.meta_bytes);
  return {.slab = std::move(slab), .row_bytes = message.row_bytes, .meta_bytes = message.meta_bytes};
}

}  // namespace switchyard::ucx
