#include "hazards.h"

#include <algorithm>
#include <iterator>

namespace fake_cuda {

void Clock::join(const Clock& other) {
  if (seen_.size() < other.seen_.size()) seen_.resize(other.seen_.size());
  for (size_t i = 0; i < other.seen_.size(); ++i) seen_[i] = std::max(seen_[i], other.seen_[i]);
}

uint64_t Clock::tick(size_t line) {
  if (seen_.size() <= line) seen_.resize(line + 1);
  return ++seen_[line];
}

bool Clock::has_seen(const Clock& other) const {
  for (size_t i = 0; i < other.seen_.size(); ++i) {
    if (other.seen_[i] > 0 && !has_seen(i, other.seen_[i])) return false;
  }
  return true;
}

std::string Name::text() const {
  const char* const where = line % 2 == 0 ? " of stream " : " by thread ";
  return kind + (where + std::to_string(line / 2)) + " (" + std::to_string(number) + ")";
}

void Memory::add(const void* begin, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  allocations_[at] = {at + bytes, {}};
  bytes_ += bytes;
}

size_t Memory::remove(const void* begin) {
  const auto found = allocations_.find(reinterpret_cast<uintptr_t>(begin));
  if (found == allocations_.end()) return 0;
  const size_t bytes = found->second.end - found->first;
  allocations_.erase(found);
  bytes_ -= bytes;
  return bytes;
}

Memory::Allocation* Memory::find(const void* begin, size_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  auto next = allocations_.upper_bound(at);
  if (next == allocations_.begin()) return nullptr;
  Allocation& allocation = std::prev(next)->second;
  return at + bytes <= allocation.end ? &allocation : nullptr;
}

bool Memory::access(const void* begin, size_t bytes, bool writes, const Moment& moment) {
  if (bytes == 0) return true;
  Allocation* const allocation = find(begin, bytes);
  if (allocation == nullptr) {
    hazards.push_back(moment.name.text() + " touches " + std::to_string(bytes) + " bytes that are not, or no longer, memory for it");
    return false;
  }
  const Access access{reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(begin) + bytes, writes, moment.name};
  std::vector<Access>& known = allocation->accesses;
  for (const Access& other : known) {
    const bool overlaps = other.begin < access.end && access.begin < other.end;
    if (!overlaps || !(writes || other.writes) || moment.is_after(other.name)) continue;
    hazards.push_back(moment.name.text() + (writes ? " writes" : " reads") + " what " + other.name.text() + (other.writes ? " writes" : " reads") +
                      ", and neither waits for the other");
  }
  std::erase_if(known, [&](const Access& other) {
    const bool covered = access.begin <= other.begin && other.end <= access.end;
    return covered && (writes || (!other.writes && other.name.line == access.name.line));
  });
  known.push_back(access);
  return true;
}

}  // namespace fake_cuda
