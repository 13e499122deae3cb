// What the CUDA backend does with a device that is not there: memory, streams and slabs, loads beside calls, a device that fails by itself.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "experts_cuda_fake_support.h"

namespace switchyard::cuda::test {
namespace {

TEST(CudaLifeOnAFake, UsesAllItsStreamsAndAsksForAQueueForEach) {
  fake_cuda::reset({});
  {
    Backend device;
    std::vector<std::unique_ptr<Expert>> experts;
    std::vector<const Expert*> pointers;
    for (int i = 0; i < 8; ++i) {
      experts.push_back(device.load(0));
      pointers.push_back(experts.back().get());
    }
    device.compute_at_once(pointers, every(8));
    EXPECT_EQ(device.batches, (std::vector<size_t>{5, 40}));
  }
  const auto report = fake_cuda::report();
  EXPECT_EQ(report.hazards, std::vector<std::string>{});
  EXPECT_EQ(report.streams_unused, 0u);
  ASSERT_TRUE(report.connections);
  EXPECT_LE(report.streams, std::stoul(*report.connections));
}

TEST(CudaLifeOnAFake, CopiesNoTableWhereRowsAreUsedAsTheyLand) {
  fake_cuda::reset({});
  Backend device;
  const auto expert = device.load(0);
  const auto copies_for = [&](size_t step) {
    const uint64_t before = fake_cuda::report().copies_in;
    device.compute_at_once({expert.get()}, every(step));
    return fake_cuda::report().copies_in - before;
  };
  EXPECT_EQ(copies_for(1), 2u) << "the rows of two batches";
  EXPECT_EQ(copies_for(2), 4u) << "and tables to gather them by";
  EXPECT_EQ(copies_for(7), 2u) << "tables to fetch rows by, and the rows are used as they land";
}

size_t bytes_in_use() {
  size_t free_bytes = 0, total_bytes = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  return total_bytes - free_bytes;
}

TEST(CudaLifeOnAFake, KeepsEnoughOfTheDeviceForBatches) {
  fake_cuda::reset({});
  Backend device;
  const size_t before = bytes_in_use();
  const auto expert = device.load(0);
  const Shape shape{.hidden = expert->hidden(), .ffn = expert->ffn(), .gated = true};
  EXPECT_LE(bytes_in_use(), before + expert->bytes() + batch_bytes(shape));
  EXPECT_LE(fake_cuda::report().memory_bytes_max, before + expert->bytes() + batch_bytes(shape)) << "while products were tried";
}

TEST(CudaLifeOnAFake, SaysHowMuchExpertsMayTakeSoThatSoManyCanBeLoadedAndUsed) {
  // 256 MiB for workspaces, a gibibyte for batches, and about one mebibyte for experts.
  fake_cuda::reset({.memory_bytes = (size_t{1} << 30) + (size_t{257} << 20)});
  Backend device;
  const size_t room = device.backend->description().memory_bytes;
  EXPECT_LT(room, size_t{1} << 20);
  const Model large(Activation::swiglu, 64, 64, 5);
  std::vector<std::unique_ptr<Expert>> experts;
  size_t bytes = 0;
  do {
    experts.push_back(device.backend->load(large.source()));
    bytes += experts.back()->bytes();
  } while (bytes + experts.back()->bytes() <= room);
  EXPECT_GT(experts.size(), 20u);
  device.compute_at_once({experts.front().get(), experts.back().get()}, every(1));
}

TEST(CudaLifeOnAFake, LetsGoOfExpertsWithoutGivingMemoryBackToTheDevice) {
  fake_cuda::reset({});
  Backend device;
  auto expert = device.load(0);
  const size_t bytes = bytes_in_use();
  const uint64_t frees = fake_cuda::report().frees;
  for (int turn = 0; turn < 3; ++turn) {
    expert.reset();
    EXPECT_EQ(fake_cuda::report().frees, frees) << "to give it back waits for everything that runs";
    expert = device.load(1);
    EXPECT_EQ(bytes_in_use(), bytes) << "the next expert takes it";
  }
}

TEST(CudaLifeOnAFake, GivesBackWhatExpertsLeftIfOneOfAnotherSizeNeedsIt) {
  fake_cuda::reset({});
  Backend device;
  // The first of each size brings the memory of its batches.
  const auto small = device.load(0);
  auto large = device.load(3);
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  void* rest = nullptr;
  ASSERT_EQ(cudaMalloc(&rest, free_bytes), cudaSuccess);
  EXPECT_THROW(device.load(0), Error);
  large.reset();
  EXPECT_NO_THROW(device.load(0));
  cudaFree(rest);
}

/** As many calls of an expert as a worker keeps under way, with rows in slabs and not: each that ends brings the next, until they are stopped. */
class Traffic {
 public:
  Traffic(Backend& device, const Expert& expert, Rows expected) : device_(device), expert_(expert), expected_(std::move(expected)) {
    for (int i = 0; i < device.backend->description().calls; ++i) submit(i % 2 == 0);
  }
  /** Waits for those under way. */
  ~Traffic() {
    goes_on_ = false;
    EXPECT_TRUE(device_.wait());
  }

 private:
  void submit(bool pinned) {
    const auto ended = [this, pinned](const Rows& output, std::exception_ptr error) {
      EXPECT_FALSE(error);
      EXPECT_EQ(output, expected_);
      if (goes_on_) submit(pinned);
    };
    device_.submit(expert_, every(1), ended, pinned);
  }

  Backend& device_;
  const Expert& expert_;
  const Rows expected_;
  std::atomic<bool> goes_on_ = true;
};

TEST(CudaLifeOnAFake, GivesALoadItsTurnHoweverManyCallsWait) {
  fake_cuda::reset({});
  Backend device;
  const auto expert = device.load(0);
  std::mutex mutex;
  std::condition_variable changed;
  std::unique_ptr<Expert> loaded;
  std::thread loader;
  {
    const Traffic traffic(device, *expert, device.compute(*expert, every(1)));
    loader = std::thread([&] {
      // Of another shape: room for its batches is made between others.
      auto other = device.load(2);
      const std::lock_guard lock(mutex);
      loaded = std::move(other);
      changed.notify_all();
    });
    std::unique_lock lock(mutex);
    EXPECT_TRUE(changed.wait_for(lock, patience, [&] { return loaded != nullptr; })) << "calls go on for ever, and the load waits";
  }
  loader.join();
  EXPECT_EQ(fake_cuda::report().hazards, std::vector<std::string>{});
}

TEST(CudaLifeOnAFake, MakesRoomForExpertsWhileBatchesRun) {
  std::vector<Rows> expected;
  fake_cuda::reset({});
  {
    Backend device;
    for (size_t number = 0; number < 4; ++number) expected.push_back(device.compute(*device.load(number), every(1)));
  }
  for (const fake_cuda::Order order : orders) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      fake_cuda::reset({.order = order, .seed = seed, .hardware_queues = seed % 2 == 0 ? size_t{8} : 0});
      {
        Backend device;
        const auto expert = device.load(0);
        const Traffic traffic(device, *expert, expected[0]);
        // The batches of each shape need more room than those of the one before; one of a shape takes the place of another.
        for (const size_t number : {1, 0, 2, 3, 1, 2}) EXPECT_EQ(device.compute(*device.load(number), every(1)), expected[number]) << "expert " << number;
        // The device is full now: what is left is given back to it, which waits for the batches.
        size_t free_bytes = 0, total_bytes = 0;
        ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
        void* rest = nullptr;
        ASSERT_EQ(cudaMalloc(&rest, free_bytes), cudaSuccess);
        const auto first = device.load(0), second = device.load(1);
        EXPECT_EQ(device.compute(*second, every(1)), expected[1]);
        cudaFree(rest);
      }
      ASSERT_EQ(fake_cuda::report().hazards, std::vector<std::string>{}) << "order " << static_cast<int>(order) << ", seed " << seed;
    }
  }
}

/** Runs calls on a device that runs nothing, until it has been looked at as often. */
void wait_for_looks(uint64_t looks) {
  const uint64_t before = fake_cuda::report().queries;
  const auto end = std::chrono::steady_clock::now() + patience;
  while (fake_cuda::report().queries < before + looks && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST(CudaLifeOnAFake, LooksAfterABatchThatTakesLongAndTakesItForNoFailure) {
  fake_cuda::reset({});
  Backend device;
  const auto expert = device.load(0);
  const Rows expected = device.compute(*expert, every(1));
  int right = 0;
  const auto ended = [&](const Rows& output, std::exception_ptr error) {
    EXPECT_FALSE(error);
    right += output == expected ? 1 : 0;
  };
  fake_cuda::hold(true);
  device.submit(*expert, every(1), ended);
  // Of four streams.
  wait_for_looks(8);
  EXPECT_GE(fake_cuda::report().queries, 8u) << "a device that fails by itself would not be noticed";
  // Queued behind a look that found streams at work.
  device.submit(*expert, every(1), ended);
  wait_for_looks(8);
  fake_cuda::hold(false);
  EXPECT_TRUE(device.wait());
  EXPECT_EQ(right, 2);
}

TEST(CudaLifeOnAFake, EndsCallsOfADeviceThatFailsByItself) {
  fake_cuda::reset({.failing_query = 1});
  Backend device;
  const auto expert = device.load(0);
  // No batch comes to its end before the device is asked how it does.
  fake_cuda::hold(true);
  std::vector<std::exception_ptr> errors;
  const auto ended = [&](const Rows&, std::exception_ptr error) { errors.push_back(error); };
  for (int i = 0; i < 3; ++i) device.submit(*expert, every(1), ended);
  EXPECT_TRUE(device.wait()) << "calls are under way on a device that has failed";
  fake_cuda::hold(false);
  // As all later ones do.
  device.submit(*expert, every(1), ended);
  ASSERT_TRUE(device.wait());
  ASSERT_EQ(errors.size(), 4u);
  for (const std::exception_ptr& error : errors) {
    ASSERT_TRUE(error);
    EXPECT_EQ(code_of(error), Code::device_lost) << text_of(error);
  }
  EXPECT_THROW(device.load(1), Error);
}

TEST(CudaLifeOnAFake, RegistersSlabsBeforeTheyAreNeeded) {
  fake_cuda::reset({});
  SlabArena arena(size_t{64} << 20);
  const auto backend = create_backend(0);
  arena.set_listener(backend->memory_listener());
  std::vector<SlabRef> slabs;
  for (size_t i = 1; i < 40; ++i) slabs.push_back(arena.allocate(i * 20'000));
  for (const SlabRef& slab : slabs) {
    void* address = nullptr;
    EXPECT_EQ(cudaHostGetDevicePointer(&address, slab->data(), 0), cudaSuccess) << slab->size() << " bytes are not registered";
  }
  EXPECT_EQ(fake_cuda::report().registrations, 1u);
}

TEST(CudaLifeOnAFake, RefusesExpertsThatItDoesNotCompute) {
  fake_cuda::reset({});
  const auto backend = create_backend(0);
  const auto refused = [&](ExpertSource source, const std::string& why) {
    try {
      backend->load(source);
      ADD_FAILURE() << why << " is loaded";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  };
  ExpertSource source = model(0).source();
  source.activation = Activation::geglu;
  refused(source, "of another form");
  source = model(0).source();
  source.glu.alpha = 1.702f;
  refused(source, "of another form");
  source = model(0).source();
  source.down_bias = [] { return std::vector<float>(hidden); };
  refused(source, "bias");
  source = model(0).source();
  source.latent = LatentSource{.key = "a layer", .input = source.down, .output = source.up};
  refused(source, "latent");
}

}  // namespace
}  // namespace switchyard::cuda::test
