#include "runtime/pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <vector>

#include "runtime/error.h"
#include "runtime/serial_queue.h"

namespace switchyard {
namespace {

TEST(ThreadPool, RunsEverythingBeforeItEnds) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(3);
    for (int i = 0; i < 500; ++i) pool.submit([&] { ++ran; });
  }
  EXPECT_EQ(ran, 500);
}

TEST(ThreadPool, RefusesAThreadCountOutOfRange) {
  EXPECT_THROW(ThreadPool(0), Error);
  EXPECT_THROW(ThreadPool(1025), Error);
}

TEST(ThreadPool, ParallelForRunsEveryIndexOnce) {
  ThreadPool pool(2);
  for (const size_t count : {0u, 1u, 2u, 3u, 1000u}) {
    std::vector<std::atomic<int>> calls(count);
    pool.parallel_for(count, [&](size_t index) { ++calls[index]; });
    for (const auto& call : calls) EXPECT_EQ(call, 1);
  }
}

TEST(ThreadPool, NestedLoopsEndWhenEveryThreadIsInALoop) {
  ThreadPool pool(2);
  std::atomic<int> ran{0};
  std::vector<std::future<void>> outer;
  for (int i = 0; i < 8; ++i) {
    auto done = std::make_shared<std::promise<void>>();
    outer.push_back(done->get_future());
    pool.submit([&, done] {
      pool.parallel_for(4, [&](size_t) { pool.parallel_for(4, [&](size_t) { ++ran; }); });
      done->set_value();
    });
  }
  for (auto& done : outer) ASSERT_EQ(done.wait_for(std::chrono::seconds(30)), std::future_status::ready);
  EXPECT_EQ(ran, 8 * 4 * 4);
}

TEST(ThreadPool, ALoopEndsThoughTheOnlyThreadIsBusy) {
  std::promise<void> begun, release;
  std::atomic<int> ran{0};
  ThreadPool pool(1);
  pool.submit([&] {
    begun.set_value();
    release.get_future().wait();
  });
  begun.get_future().wait();
  pool.parallel_for(64, [&](size_t) { ++ran; });
  EXPECT_EQ(ran, 64);
  release.set_value();
}

TEST(ThreadPool, RethrowsTheFirstErrorOfALoopAndStaysUsable) {
  ThreadPool pool(2);
  std::atomic<int> begun{0};
  const auto failing = [&](size_t index) {
    ++begun;
    if (index == 3) throw Error(Code::data_loss, "row 3");
  };
  try {
    pool.parallel_for(100'000, failing);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::data_loss);
  }
  EXPECT_LT(begun, 100'000);
  std::atomic<int> ran{0};
  pool.parallel_for(10, [&](size_t) { ++ran; });
  EXPECT_EQ(ran, 10);
}

TEST(SerialQueue, RunsTasksInOrderAndWhatIsQueuedBeforeItEnds) {
  std::vector<int> order;
  {
    SerialQueue queue("test");
    for (int i = 0; i < 200; ++i) EXPECT_TRUE(queue.submit([&, i] { order.push_back(i); }));
    queue.close();
    queue.close();
    EXPECT_FALSE(queue.submit([&] { order.push_back(-1); }));
  }
  ASSERT_EQ(order.size(), 200u);
  for (int i = 0; i < 200; ++i) EXPECT_EQ(order[i], i);
}

}  // namespace
}  // namespace switchyard
