#include "runtime/pool.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <utility>

#include "runtime/error.h"
#include "runtime/thread_start.h"

namespace switchyard {

namespace {

constexpr int threads_max = 1024;

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > threads_max) throw_invalid("threads", threads, "1 to " + std::to_string(threads_max));
  threads_.reserve(threads);
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] {
      start_thread("rows");
      work();
    });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ThreadPool::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void ThreadPool::work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return closing_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    // What the task holds must be freed before the lock is taken again.
    task = nullptr;
    lock.lock();
  }
}

/** What the threads of one parallel_for share. A helper that starts late finds nothing left and never reads `body`. */
struct ThreadPool::Loop {
  Loop(size_t count, const std::function<void(size_t)>& body) : count(count), body(body) {}

  void run() {
    for (size_t index; (index = next.fetch_add(1)) < count;) {
      if (!failed.load(std::memory_order_relaxed)) {
        try {
          body(index);
        } catch (...) {
          const std::lock_guard lock(mutex);
          if (!failed.exchange(true)) error = std::current_exception();
        }
      }
      if (ended.fetch_add(1) + 1 == count) {
        const std::lock_guard lock(mutex);
        all_ended.notify_one();
      }
    }
  }

  void wait() {
    std::unique_lock lock(mutex);
    all_ended.wait(lock, [this] { return ended.load() == count; });
    if (error) std::rethrow_exception(error);
  }

  const size_t count;
  const std::function<void(size_t)>& body;
  std::atomic<size_t> next{0};
  std::atomic<size_t> ended{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;
  std::condition_variable all_ended;
  std::exception_ptr error;
};

void ThreadPool::parallel_for(size_t count, const std::function<void(size_t)>& body) {
  if (count == 0) return;
  const size_t helpers = std::min(count - 1, threads_.size());
  if (helpers == 0) return body(0);
  const auto loop = std::make_shared<Loop>(count, body);
  {
    const std::lock_guard lock(mutex_);
    // In front of the queue: work that has begun ends before other work begins.
    for (size_t i = 0; i < helpers; ++i) tasks_.emplace_front([loop] { loop->run(); });
  }
  helpers == 1 ? wake_.notify_one() : wake_.notify_all();
  // The caller takes part, so the loop ends even if no thread of the pool is ever free.
  loop->run();
  loop->wait();
}

}  // namespace switchyard
