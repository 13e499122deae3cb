#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "memory/memory_file.h"

namespace switchyard {

/** Large pieces of memory that are cut into blocks, so that whoever registers memory with a device does it seldom. Not thread-safe. */
class Regions {
 public:
  /** A region that is mapped; `capacity` bytes. */
  void add(const Block& region, size_t capacity);
  /** A block from the place where it fits best; empty if there is none. `capacity` is a multiple of the page. */
  std::optional<Block> take(size_t capacity);
  /** Takes a block back. False if it is of no region. */
  bool give_back(const Block& block, size_t capacity);

  /** Of all regions, used or not. */
  size_t bytes() const { return bytes_; }
  /** Each with its capacity. */
  const std::vector<std::pair<Block, size_t>>& all() const { return regions_; }

 private:
  std::vector<std::pair<Block, size_t>> regions_;
  /** What is free: where it begins, and how many bytes it has. Neighbours of one region are one. */
  std::map<std::byte*, size_t> free_;
  size_t bytes_ = 0;
};

}  // namespace switchyard
