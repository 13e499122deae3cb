#pragma once

#include "ucx/fabric.h"

namespace switchyard::ucx {

/** Where the indices of a message of `select_rows` lie in its slab: behind the metadata, at a multiple of their size. */
inline size_t indices_offset(size_t meta_bytes) {
  return (meta_bytes + sizeof(uint32_t) - 1) / sizeof(uint32_t) * sizeof(uint32_t);
}

/** A message of `select_rows` as one region of a slab of its own. Throws RESOURCE_EXHAUSTED. */
Message gathered(SlabArena& arena, const Message& message);

}  // namespace switchyard::ucx
