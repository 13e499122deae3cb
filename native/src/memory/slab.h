#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "memory/listener.h"
#include "memory/memory_file.h"
#include "memory/regions.h"

namespace switchyard {

class SlabArena;

/** Page-aligned memory with an intrusive count. Made by SlabArena alone, used through SlabRef. */
class Slab {
 public:
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  std::byte* data() const { return block_.data; }
  /** Where another process that maps the arena's file finds the data. */
  uint64_t file_offset() const { return block_.offset; }
  /** Bytes that the caller asked for; the memory behind it may be larger. */
  size_t size() const { return size_; }
  /** Bytes of memory that may be written: the size, what was asked for behind it, and rounding. */
  size_t capacity() const { return capacity_; }

 private:
  friend class SlabArena;
  friend class SlabRef;

  Slab(SlabArena& arena, Block block, size_t capacity, size_t size)
      : arena_(arena), block_(block), capacity_(capacity), size_(size) {}

  SlabArena& arena_;
  Block block_;
  size_t capacity_;
  size_t size_;
  std::atomic<uint32_t> references_{0};
};

/** Counted pointer to a slab. The last one gives the memory back to the arena. */
class SlabRef {
 public:
  SlabRef() = default;
  SlabRef(const SlabRef& other) : SlabRef(other.slab_) {}
  SlabRef(SlabRef&& other) noexcept : slab_(std::exchange(other.slab_, nullptr)) {}
  SlabRef& operator=(SlabRef other) noexcept {
    std::swap(slab_, other.slab_);
    return *this;
  }
  ~SlabRef() { reset(); }

  void reset();
  explicit operator bool() const { return slab_ != nullptr; }
  Slab* get() const { return slab_; }
  Slab* operator->() const { return slab_; }
  Slab& operator*() const { return *slab_; }

 private:
  friend class SlabArena;
  explicit SlabRef(Slab* slab) : slab_(slab) {
    if (slab_) slab_->references_.fetch_add(1, std::memory_order_relaxed);
  }

  Slab* slab_ = nullptr;
};

struct ArenaStats {
  size_t slabs;
  /** Memory behind live slabs: their sizes rounded up to size classes. */
  size_t bytes_in_use;
  size_t bytes_cached;
  size_t bytes_limit;
};

/**
 * Allocates slabs in size classes (at most an eighth of waste above 64 KiB), keeps freed ones for reuse, and never
 * holds more than its limit, cache included. All slabs lie in one file in memory, so that a process of this machine that
 * may look into this one can map them. Thread-safe. Must outlive its slabs.
 */
class SlabArena {
 public:
  explicit SlabArena(size_t bytes_limit) : bytes_limit_(bytes_limit) {}
  ~SlabArena();
  SlabArena(const SlabArena&) = delete;
  SlabArena& operator=(const SlabArena&) = delete;

  /**
   * Contents are undefined. `tail` bytes of capacity lie behind the size, for what a transport sends with the rows.
   * Throws INVALID_ARGUMENT for 0 bytes, RESOURCE_EXHAUSTED at the limit.
   */
  SlabRef allocate(size_t size, size_t tail = 0);
  /** Gives memory back to the system that was kept for reuse and not needed since the last call. */
  void trim();
  ArenaStats stats() const;
  /** Applies to later allocations; slabs in use stay. `setting`: what draws the limit, for errors; empty: nothing to name. */
  void set_limit(size_t bytes_limit, std::string setting = {});
  /** Where the slabs lie; other things that other processes are to see may lie there too. */
  MemoryFile& file() { return file_; }
  /**
   * Hears of memory that is mapped from now on; null: nobody. For one that wants regions, memory is mapped in regions and stays
   * mapped as long as the arena lives, the first of them at once; blocks beyond what the limit allows for whole regions are no part
   * of one, and the listener does not hear of them.
   */
  void set_listener(std::shared_ptr<MemoryListener> listener);

 private:
  friend class SlabRef;
  /** Blocks to unmap after the lock is gone, with their capacities. */
  using Evicted = std::vector<std::pair<Block, size_t>>;

  void give_back(Slab* slab);
  void evict_until(size_t bytes_allowed, Evicted& evicted);
  void unmap(const Evicted& evicted);
  void empty_cache();
  Block map(size_t capacity);
  /** A region with room for so much, told to the listener. False if the limit or the system leaves none. */
  bool add_region(MemoryListener& listener, size_t capacity);
  std::shared_ptr<MemoryListener> listener() const;

  MemoryFile file_;
  mutable std::mutex mutex_;
  size_t bytes_limit_;
  std::string limit_setting_;
  size_t slabs_ = 0;
  size_t bytes_in_use_ = 0;
  size_t bytes_cached_ = 0;
  /** The least of that since the last trim. */
  size_t bytes_cached_min_ = 0;
  std::unordered_map<size_t, std::vector<Block>> cached_;
  std::shared_ptr<MemoryListener> listener_;
  Regions regions_;
  /** One region at a time. */
  std::mutex region_mutex_;
};

}  // namespace switchyard
