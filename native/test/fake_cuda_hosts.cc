// What the fake device knows of the threads that use it: one that waits learns what has happened, and others learn it from that one alone.
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <cuda_runtime.h>

#include "fake.h"

namespace fake_cuda {
namespace {

constexpr size_t bytes = 256;

/** Memory of both sides and a stream; what the device did is waited for by one thread and used by another. */
class FakeCudaHosts : public testing::Test {
 protected:
  void SetUp() override {
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "the sanitizer tells which threads do not synchronise, and they have one clock";
#endif
    reset({});
    EXPECT_EQ(cudaMalloc(&on_device, bytes), cudaSuccess);
    EXPECT_EQ(cudaHostAlloc(&on_host, bytes, cudaHostAllocDefault), cudaSuccess);
    for (cudaStream_t* stream : {&first, &second}) EXPECT_EQ(cudaStreamCreateWithPriority(stream, cudaStreamNonBlocking, 0), cudaSuccess);
    host_writes(on_host, bytes);
    EXPECT_EQ(cudaMemcpyAsync(on_device, on_host, bytes, cudaMemcpyHostToDevice, first), cudaSuccess);
  }

  void copy_out() { EXPECT_EQ(cudaMemcpyAsync(on_host, on_device, bytes, cudaMemcpyDeviceToHost, first), cudaSuccess); }
  void wait() { EXPECT_EQ(cudaStreamSynchronize(first), cudaSuccess); }

  /** One thread waits for the device, and then another goes on, which cannot know from it that it has. */
  void wait_and_go_on_apart(const std::function<void()>& go_on) {
    std::atomic<bool> has_waited = false;
    std::thread waits([&] {
      wait();
      has_waited.store(true, std::memory_order_relaxed);
    });
    while (!has_waited.load(std::memory_order_relaxed)) std::this_thread::yield();
    go_on();
    waits.join();
  }

  static std::string hazards() {
    std::string text;
    for (const std::string& hazard : report().hazards) text += hazard + "\n";
    return text;
  }

  void* on_device = nullptr;
  void* on_host = nullptr;
  cudaStream_t first = nullptr, second = nullptr;
};

TEST_F(FakeCudaHosts, WhoReadsAResultThatAnotherHasWaitedForIsNamed) {
  copy_out();
  wait_and_go_on_apart([this] { host_reads(on_host, bytes); });
  EXPECT_NE(hazards().find("the host's access by thread 0 (2) reads what a copy out of stream 0 (2) writes"), std::string::npos) << hazards();
}

TEST_F(FakeCudaHosts, WhoWritesWhatAnotherKnowsToBeCopiedIsNamed) {
  wait_and_go_on_apart([this] { host_writes(on_host, bytes); });
  EXPECT_NE(hazards().find("the host's access by thread 0 (2) writes what a copy in of stream 0 (1) reads"), std::string::npos) << hazards();
}

TEST_F(FakeCudaHosts, WhoQueuesIntoMemoryThatAnotherKnowsToBeFreeIsNamed) {
  wait_and_go_on_apart([this] { EXPECT_EQ(cudaMemsetAsync(on_device, 0, bytes, second), cudaSuccess); });
  EXPECT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_NE(hazards().find("a memset of stream 1 (1) writes what a copy in of stream 0 (1) writes"), std::string::npos) << hazards();
}

TEST_F(FakeCudaHosts, WhoFillsWhatAnUnknownCopyTakesIsNamedByTheNextCopy) {
  wait_and_go_on_apart([this] {
    // As the backend does: nobody says that it writes there.
    static_cast<char*>(on_host)[0] = 1;
    EXPECT_EQ(cudaMemcpyAsync(on_device, on_host, bytes, cudaMemcpyHostToDevice, first), cudaSuccess);
  });
  EXPECT_NE(hazards().find("the host has changed what a copy in of stream 0 (1) copies, and has not waited for it"), std::string::npos) << hazards();
}

TEST_F(FakeCudaHosts, ThreadsLearnByMutexes) {
  copy_out();
  std::mutex mutex;
  bool has_waited = false;
  std::thread waits([&] {
    wait();
    const std::lock_guard lock(mutex);
    has_waited = true;
  });
  for (bool knows = false; !knows; std::this_thread::yield()) {
    const std::unique_lock lock(mutex, std::try_to_lock);
    knows = lock && has_waited;
  }
  host_reads(on_host, bytes);
  waits.join();
  EXPECT_EQ(hazards(), "");
}

TEST_F(FakeCudaHosts, ThreadsLearnByConditions) {
  copy_out();
  std::mutex mutex;
  std::condition_variable changed;
  int turn = 0;
  const auto take = [&](int number, const std::function<void()>& act) {
    std::unique_lock lock(mutex);
    // By each of the ways to wait.
    if (number % 2 == 0) changed.wait(lock, [&] { return turn == number; });
    else if (number % 3 == 0) changed.wait_for(lock, std::chrono::hours(1), [&] { return turn == number; });
    else changed.wait_until(lock, std::chrono::system_clock::now() + std::chrono::hours(1), [&] { return turn == number; });
    act();
    ++turn;
    changed.notify_all();
  };
  const auto read = [this] { host_reads(on_host, bytes); };
  std::vector<std::thread> threads;
  threads.emplace_back([&] { take(3, read); });
  threads.emplace_back([&] { take(2, read); });
  threads.emplace_back([&] { take(1, read); });
  threads.emplace_back([&] { take(0, [this] { wait(); }); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(hazards(), "");
}

TEST_F(FakeCudaHosts, ThreadsLearnByStartingAndJoining) {
  copy_out();
  std::thread waits([this] { wait(); });
  waits.join();
  host_reads(on_host, bytes);
  std::thread reads([this] {
    host_reads(on_host, bytes);
    host_writes(on_host, bytes);
  });
  reads.join();
  // The device may write there again: whoever read it has ended.
  copy_out();
  wait();
  EXPECT_EQ(hazards(), "");
}

TEST_F(FakeCudaHosts, AThreadThatStillReadsIsNamedWhenTheDeviceWritesThere) {
  wait();
  std::atomic<bool> has_read = false, may_end = false;
  std::thread reads([&] {
    host_reads(on_host, bytes);
    has_read.store(true, std::memory_order_relaxed);
    while (!may_end.load(std::memory_order_relaxed)) std::this_thread::yield();
  });
  while (!has_read.load(std::memory_order_relaxed)) std::this_thread::yield();
  copy_out();
  wait();
  may_end.store(true, std::memory_order_relaxed);
  reads.join();
  EXPECT_NE(hazards().find("a copy out of stream 0 (2) writes what the host's access by thread 1 (1) reads"), std::string::npos) << hazards();
}

TEST_F(FakeCudaHosts, AHostFunctionKnowsWhatWasBeforeItInItsStreamAlone) {
  copy_out();
  const auto read = [](void* memory) { host_reads(memory, bytes); };
  EXPECT_EQ(cudaLaunchHostFunc(first, read, on_host), cudaSuccess);
  wait();
  EXPECT_EQ(hazards(), "");
  EXPECT_EQ(cudaMemsetAsync(on_device, 0, bytes, second), cudaSuccess);
  copy_out();
  EXPECT_EQ(cudaLaunchHostFunc(second, read, on_host), cudaSuccess);
  for (const cudaStream_t stream : {first, second}) EXPECT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_NE(hazards(), "");
}

}  // namespace
}  // namespace fake_cuda
