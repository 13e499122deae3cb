#include "memory/regions.h"

#include <algorithm>
#include <iterator>

namespace switchyard {
namespace {

bool holds(const std::pair<Block, size_t>& region, const std::byte* at) {
  return at >= region.first.data && at < region.first.data + region.second;
}

}  // namespace

void Regions::add(const Block& region, size_t capacity) {
  regions_.emplace_back(region, capacity);
  free_.emplace(region.data, capacity);
  bytes_ += capacity;
}

std::optional<Block> Regions::take(size_t capacity) {
  auto best = free_.end();
  for (auto place = free_.begin(); place != free_.end(); ++place) {
    if (place->second >= capacity && (best == free_.end() || place->second < best->second)) best = place;
  }
  if (best == free_.end()) return std::nullopt;
  const auto [at, bytes] = *best;
  free_.erase(best);
  if (bytes > capacity) free_.emplace(at + capacity, bytes - capacity);
  const Block& region = std::ranges::find_if(regions_, [at](const auto& one) { return holds(one, at); })->first;
  return Block{at, region.offset + static_cast<uint64_t>(at - region.data)};
}

bool Regions::give_back(const Block& block, size_t capacity) {
  const auto region = std::ranges::find_if(regions_, [&](const auto& one) { return holds(one, block.data); });
  if (region == regions_.end()) return false;
  auto place = free_.emplace(block.data, capacity).first;
  const auto next = std::next(place);
  if (next != free_.end() && place->first + place->second == next->first && holds(*region, next->first)) {
    place->second += next->second;
    free_.erase(next);
  }
  if (place == free_.begin()) return true;
  const auto before = std::prev(place);
  if (before->first + before->second == place->first && holds(*region, before->first)) {
    before->second += place->second;
    free_.erase(place);
  }
  return true;
}

}  // namespace switchyard
