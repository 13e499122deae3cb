#include "memory/slab.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <string>

#include "runtime/error.h"

namespace switchyard {

namespace {

constexpr size_t page_bytes = 4096;
constexpr size_t size_max = size_t{1} << 46;

/** Whole pages up to 64 KiB; above, eight classes for every doubling. */
size_t size_class(size_t size) {
  size_t step = page_bytes;
  if (size > 16 * page_bytes) step = std::bit_floor(size - 1) / 8;
  return (size + step - 1) / step * step;
}

}  // namespace

void SlabRef::reset() {
  Slab* slab = std::exchange(slab_, nullptr);
  if (slab && slab->references_.fetch_sub(1, std::memory_order_acq_rel) == 1) slab->arena_.give_back(slab);
}

SlabArena::~SlabArena() {
  empty_cache();
  const auto told = listener();
  for (const auto& [region, capacity] : regions_.all()) {
    if (told) told->unmapping(region.data);
    file_.unmap(region, capacity);
  }
}

SlabRef SlabArena::allocate(size_t size, size_t tail) {
  if (size == 0 || size > size_max || tail > size_max) {
    throw_invalid("byteLength", size, "1 to " + std::to_string(size_max));
  }
  const size_t capacity = size_class(size + tail);
  Evicted evicted;
  std::optional<Block> block;
  {
    const std::lock_guard lock(mutex_);
    if (capacity > bytes_limit_ || bytes_in_use_ > bytes_limit_ - capacity) {
      throw Error(Code::resource_exhausted,
                  "a slab of " + std::to_string(size) + " bytes does not fit: " + std::to_string(bytes_in_use_) +
                      " of " + std::to_string(bytes_limit_) + " bytes are in use" +
                      (limit_setting_.empty() ? "" : ", by " + limit_setting_));
    }
    const auto found = cached_.find(capacity);
    if (found != cached_.end() && !found->second.empty()) {
      block = found->second.back();
      found->second.pop_back();
      bytes_cached_ -= capacity;
      bytes_cached_min_ = std::min(bytes_cached_min_, bytes_cached_);
    } else {
      evict_until(bytes_limit_ - bytes_in_use_ - capacity, evicted);
    }
    bytes_in_use_ += capacity;
    ++slabs_;
  }
  unmap(evicted);
  if (!block) {
    try {
      block = map(capacity);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      bytes_in_use_ -= capacity;
      --slabs_;
      throw;
    }
  }
  return SlabRef(new Slab(*this, *block, capacity, size));
}

Block SlabArena::map(size_t capacity) {
  const auto told = listener();
  const auto from_region = [&] {
    const std::lock_guard lock(mutex_);
    return regions_.take(capacity);
  };
  if (const auto block = from_region()) return *block;
  if (told && told->region_bytes() > 0) {
    const std::lock_guard one(region_mutex_);
    // Another thread may have brought a region meanwhile.
    if (const auto block = from_region()) return *block;
    // What is kept of other sizes makes way before memory is taken that the listener does not hear of.
    if (!add_region(*told, capacity)) empty_cache();
    if (const auto block = from_region()) return *block;
  }
  const Block block = file_.map(capacity);
  if (told && told->region_bytes() == 0) told->mapped(block.data, capacity);
  return block;
}

void SlabArena::empty_cache() {
  Evicted all;
  {
    const std::lock_guard lock(mutex_);
    evict_until(0, all);
  }
  unmap(all);
}

bool SlabArena::add_region(MemoryListener& told, size_t capacity) {
  size_t bytes = 0;
  {
    const std::lock_guard lock(mutex_);
    const size_t left = bytes_limit_ - std::min(bytes_limit_, regions_.bytes());
    bytes = std::min(std::max(told.region_bytes(), capacity), left / page_bytes * page_bytes);
  }
  if (bytes < capacity || bytes == 0) return false;
  Block region;
  try {
    region = file_.map(bytes);
  } catch (const Error&) {
    return false;
  }
  told.mapped(region.data, bytes);
  const std::lock_guard lock(mutex_);
  regions_.add(region, bytes);
  return true;
}

void SlabArena::give_back(Slab* slab) {
  Evicted evicted;
  {
    const std::lock_guard lock(mutex_);
    --slabs_;
    bytes_in_use_ -= slab->capacity_;
    cached_[slab->capacity_].push_back(slab->block_);
    bytes_cached_ += slab->capacity_;
    // The limit may have been lowered while the slab was in use.
    evict_until(bytes_limit_ > bytes_in_use_ ? bytes_limit_ - bytes_in_use_ : 0, evicted);
  }
  unmap(evicted);
  delete slab;
}

void SlabArena::evict_until(size_t bytes_allowed, Evicted& evicted) {
  for (auto class_ = cached_.begin(); bytes_cached_ > bytes_allowed && class_ != cached_.end(); ++class_) {
    auto& [capacity, blocks] = *class_;
    while (bytes_cached_ > bytes_allowed && !blocks.empty()) {
      evicted.emplace_back(blocks.back(), capacity);
      blocks.pop_back();
      bytes_cached_ -= capacity;
    }
  }
  bytes_cached_min_ = std::min(bytes_cached_min_, bytes_cached_);
}

void SlabArena::trim() {
  Evicted evicted;
  {
    const std::lock_guard lock(mutex_);
    evict_until(bytes_cached_ - bytes_cached_min_, evicted);
    bytes_cached_min_ = bytes_cached_;
  }
  unmap(evicted);
}

void SlabArena::unmap(const Evicted& evicted) {
  if (evicted.empty()) return;
  const auto told = listener();
  for (const auto& [block, capacity] : evicted) {
    {
      const std::lock_guard lock(mutex_);
      if (regions_.give_back(block, capacity)) continue;
    }
    if (told) told->unmapping(block.data);
    file_.unmap(block, capacity);
  }
}

std::shared_ptr<MemoryListener> SlabArena::listener() const {
  const std::lock_guard lock(mutex_);
  return listener_;
}

void SlabArena::set_listener(std::shared_ptr<MemoryListener> told) {
  {
    const std::lock_guard lock(mutex_);
    listener_ = told;
  }
  if (!told || told->region_bytes() == 0) return;
  const std::lock_guard one(region_mutex_);
  // Those of a listener before this one.
  for (const auto& [region, capacity] : regions_.all()) told->mapped(region.data, capacity);
  if (regions_.all().empty()) add_region(*told, page_bytes);
}

ArenaStats SlabArena::stats() const {
  const std::lock_guard lock(mutex_);
  return {slabs_, bytes_in_use_, bytes_cached_, bytes_limit_};
}

void SlabArena::set_limit(size_t bytes_limit, std::string setting) {
  Evicted evicted;
  {
    const std::lock_guard lock(mutex_);
    bytes_limit_ = bytes_limit;
    limit_setting_ = std::move(setting);
    evict_until(bytes_limit_ > bytes_in_use_ ? bytes_limit_ - bytes_in_use_ : 0, evicted);
  }
  unmap(evicted);
}

}  // namespace switchyard
