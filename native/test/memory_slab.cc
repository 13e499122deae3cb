#include "memory/slab.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr size_t mebibyte = size_t{1} << 20;

Code code_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.code;
  }
  return Code::internal;
}

TEST(SlabArena, GivesPageAlignedWritableMemoryOfTheSizeAskedFor) {
  SlabArena arena(64 * mebibyte);
  for (const size_t size : {size_t{1}, size_t{4096}, size_t{4097}, 3 * mebibyte + 5}) {
    const SlabRef slab = arena.allocate(size);
    EXPECT_EQ(slab->size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slab->data()) % 4096, 0u);
    std::memset(slab->data(), 0xa5, size);
  }
}

TEST(SlabArena, WastesAtMostAnEighthOfLargeSlabs) {
  SlabArena arena(size_t{1} << 40);
  for (size_t size = 70'000; size < 40 * mebibyte; size = size * 9 / 8 + 77) {
    const SlabRef slab = arena.allocate(size);
    EXPECT_GE(arena.stats().bytes_in_use, size);
    EXPECT_LE(arena.stats().bytes_in_use, size + size / 8 + 1) << size;
  }
}

TEST(SlabArena, KeepsMemoryUntilTheLastReferenceAndThenReusesIt) {
  SlabArena arena(64 * mebibyte);
  SlabRef first = arena.allocate(mebibyte);
  SlabRef second = first;
  const std::byte* address = first->data();
  first.reset();
  first.reset();
  EXPECT_EQ(arena.stats().slabs, 1u);
  EXPECT_EQ(arena.stats().bytes_cached, 0u);
  second = SlabRef();
  EXPECT_EQ(arena.stats().slabs, 0u);
  EXPECT_EQ(arena.stats().bytes_cached, mebibyte);
  EXPECT_EQ(arena.allocate(mebibyte)->data(), address);
}

TEST(SlabArena, TrimsWhatWasNotNeededSinceTheLastTime) {
  SlabArena arena(64 * mebibyte);
  {
    std::vector<SlabRef> busy;
    for (int i = 0; i < 8; ++i) busy.push_back(arena.allocate(mebibyte));
  }
  arena.trim();
  EXPECT_EQ(arena.stats().bytes_cached, 8 * mebibyte) << "it was needed a moment ago";
  for (int i = 0; i < 3; ++i) {
    const std::vector<SlabRef> quiet{arena.allocate(mebibyte), arena.allocate(mebibyte)};
  }
  arena.trim();
  EXPECT_EQ(arena.stats().bytes_cached, 2 * mebibyte);
  arena.trim();
  EXPECT_EQ(arena.stats().bytes_cached, 0u);
}

TEST(SlabArena, RefusesAtTheLimitAndCountsTheCacheAsFree) {
  SlabArena arena(4 * mebibyte);
  {
    const SlabRef small = arena.allocate(3 * mebibyte);
    EXPECT_EQ(code_of([&] { arena.allocate(2 * mebibyte); }), Code::resource_exhausted);
    EXPECT_EQ(arena.stats().slabs, 1u);
  }
  // The 3 MiB in the cache make way for another size class.
  const SlabRef large = arena.allocate(4 * mebibyte);
  EXPECT_EQ(arena.stats().bytes_cached, 0u);
  EXPECT_EQ(arena.stats().bytes_in_use, 4 * mebibyte);
}

TEST(SlabArena, NamesTheSettingThatDrawsItsLimit) {
  SlabArena arena(4 * mebibyte);
  arena.set_limit(mebibyte, "slabBytes of worker w");
  try {
    arena.allocate(2 * mebibyte);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "a slab of 2097152 bytes does not fit: 0 of 1048576 bytes are in use, by slabBytes of worker w");
  }
}

TEST(SlabArena, RefusesZeroAndAbsurdSizes) {
  SlabArena arena(4 * mebibyte);
  EXPECT_EQ(code_of([&] { arena.allocate(0); }), Code::invalid_argument);
  EXPECT_EQ(code_of([&] { arena.allocate(SIZE_MAX); }), Code::invalid_argument);
  EXPECT_EQ(code_of([&] { arena.allocate(size_t{1} << 45); }), Code::resource_exhausted);
}

TEST(SlabArena, ALoweredLimitEmptiesTheCache) {
  SlabArena arena(8 * mebibyte);
  SlabRef kept = arena.allocate(mebibyte);
  arena.allocate(4 * mebibyte);
  EXPECT_EQ(arena.stats().bytes_cached, 4 * mebibyte);
  arena.set_limit(mebibyte / 2);
  EXPECT_EQ(arena.stats().bytes_cached, 0u);
  kept.reset();
  EXPECT_LE(arena.stats().bytes_cached, mebibyte / 2);
  EXPECT_EQ(code_of([&] { arena.allocate(mebibyte); }), Code::resource_exhausted);
}

TEST(SlabArena, ThreadsShareSlabsAndTheArena) {
  SlabArena arena(256 * mebibyte);
  const SlabRef shared = arena.allocate(4096);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&arena, shared, i] {
      for (int round = 0; round < 2000; ++round) {
        const SlabRef copy = shared;
        const SlabRef own = arena.allocate(4096 * (1 + (round + i) % 20));
        std::memset(own->data(), i, own->size());
        ASSERT_EQ(std::to_integer<int>(own->data()[own->size() - 1]), i);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(arena.stats().slabs, 1u);
  EXPECT_EQ(arena.stats().bytes_in_use, 4096u);
}

class Counter final : public MemoryListener {
 public:
  void mapped(void* memory, size_t) noexcept override { EXPECT_TRUE(regions.insert(memory).second); }
  void unmapping(void* memory) noexcept override { regions.erase(memory); }
  std::set<void*> regions;
};

TEST(SlabArena, TellsOfMemoryOnceAndBeforeItGoesBack) {
  const auto listener = std::make_shared<Counter>();
  {
    SlabArena arena(size_t{1} << 20);
    arena.set_listener(listener);
    for (int turn = 0; turn < 3; ++turn) {
      const SlabRef slab = arena.allocate(8192);
      EXPECT_EQ(listener->regions.count(slab->data()), 1u);
    }
    EXPECT_EQ(listener->regions.size(), 1u) << "memory that is used again is not told of again";
    arena.set_limit(0);
    EXPECT_TRUE(listener->regions.empty());
    arena.set_limit(size_t{1} << 20);
    const SlabRef other = arena.allocate(4096);
    EXPECT_EQ(listener->regions.size(), 1u);
  }
  EXPECT_TRUE(listener->regions.empty());
}

class RegionCounter final : public MemoryListener {
 public:
  void mapped(void* memory, size_t bytes) noexcept override {
    const std::lock_guard lock(mutex);
    EXPECT_TRUE(regions.emplace(static_cast<std::byte*>(memory), bytes).second);
  }
  void unmapping(void* memory) noexcept override { regions.erase(static_cast<std::byte*>(memory)); }
  size_t region_bytes() const noexcept override { return 4 * mebibyte; }
  bool holds(const SlabRef& slab) const {
    auto after = regions.upper_bound(slab->data());
    return after != regions.begin() && slab->data() + slab->capacity() <= std::prev(after)->first + std::prev(after)->second;
  }
  std::mutex mutex;
  std::map<std::byte*, size_t> regions;
};

TEST(SlabArena, CutsSlabsFromRegionsForAListenerThatWantsThem) {
  const auto listener = std::make_shared<RegionCounter>();
  {
    SlabArena arena(16 * mebibyte);
    arena.set_listener(listener);
    EXPECT_EQ(listener->regions.size(), 1u) << "before the first slab is needed";
    std::mt19937 random(5);
    std::vector<SlabRef> slabs;
    for (int turn = 0; turn < 2000; ++turn) {
      if (slabs.size() > 20 || (!slabs.empty() && random() % 3 == 0)) {
        const size_t one = random() % slabs.size();
        for (size_t i = 0; i < slabs[one]->size(); i += 4096) ASSERT_EQ(slabs[one]->data()[i], static_cast<std::byte>(slabs[one]->size() % 251));
        slabs[one] = slabs.back();
        slabs.pop_back();
        continue;
      }
      slabs.push_back(arena.allocate(1 + random() % (300 << 10)));
      ASSERT_TRUE(listener->holds(slabs.back()));
      std::memset(slabs.back()->data(), static_cast<int>(slabs.back()->size() % 251), slabs.back()->size());
      if (turn % 100 == 0) arena.trim();
    }
    EXPECT_LE(listener->regions.size(), 4u);
  }
  EXPECT_TRUE(listener->regions.empty());
}

TEST(SlabArena, HasARegionForASlabThatIsLargerThanOthersHaveBeen) {
  const auto listener = std::make_shared<RegionCounter>();
  SlabArena arena(16 * mebibyte);
  arena.set_listener(listener);
  EXPECT_TRUE(listener->holds(arena.allocate(6 * mebibyte)));
  EXPECT_EQ(listener->regions.size(), 2u);
  // What the limit leaves no region for is memory like any other.
  const SlabRef whole = arena.allocate(16 * mebibyte);
  EXPECT_FALSE(listener->holds(whole));
  whole->data()[whole->size() - 1] = std::byte{1};
}

TEST(SlabArena, UsesMemoryOfRegionsAgainForOtherSizes) {
  const auto listener = std::make_shared<RegionCounter>();
  SlabArena arena(4 * mebibyte);
  arena.set_listener(listener);
  for (const size_t size : {mebibyte / 8, mebibyte, mebibyte / 2, 4 * mebibyte, mebibyte / 16, 3 * mebibyte}) {
    std::vector<SlabRef> slabs;
    while (slabs.size() < 4 * mebibyte / size) {
      slabs.push_back(arena.allocate(size));
      EXPECT_TRUE(listener->holds(slabs.back())) << size;
    }
  }
  EXPECT_EQ(listener->regions.size(), 1u);
}

TEST(SlabArena, TellsANewListenerOfTheRegionsThatAreThere) {
  SlabArena arena(16 * mebibyte);
  arena.set_listener(std::make_shared<RegionCounter>());
  arena.set_listener(nullptr);
  const auto listener = std::make_shared<RegionCounter>();
  arena.set_listener(listener);
  EXPECT_TRUE(listener->holds(arena.allocate(mebibyte)));
  EXPECT_EQ(listener->regions.size(), 1u);
}

TEST(SlabArena, ThreadsShareRegions) {
  const auto listener = std::make_shared<RegionCounter>();
  SlabArena arena(64 * mebibyte);
  arena.set_listener(listener);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&arena, i] {
      for (int round = 0; round < 500; ++round) {
        const SlabRef own = arena.allocate(4096 * (1 + (round * 7 + i) % 50));
        std::memset(own->data(), i, own->size());
        ASSERT_EQ(std::to_integer<int>(own->data()[own->size() - 1]), i);
        if (round % 50 == 0) arena.trim();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(listener->regions.size(), 16u);
}

}  // namespace
}  // namespace switchyard
