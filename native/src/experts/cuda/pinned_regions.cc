#include "experts/cuda/pinned_regions.h"

namespace switchyard::cuda {

void PinnedRegions::add(const void* memory, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const std::lock_guard lock(mutex_);
  regions_[begin] = begin + bytes;
}

bool PinnedRegions::remove(const void* memory) {
  const std::lock_guard lock(mutex_);
  return regions_.erase(reinterpret_cast<uintptr_t>(memory)) > 0;
}

bool PinnedRegions::holds(const void* memory, size_t bytes) const {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const std::lock_guard lock(mutex_);
  auto region = regions_.upper_bound(begin);
  if (region == regions_.begin()) return false;
  --region;
  return begin + bytes <= region->second;
}

std::vector<void*> PinnedRegions::take_all() {
  std::vector<void*> all;
  const std::lock_guard lock(mutex_);
  for (const auto& [begin, end] : regions_) all.push_back(reinterpret_cast<void*>(begin));
  regions_.clear();
  return all;
}

}  // namespace switchyard::cuda
