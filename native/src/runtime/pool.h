#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace switchyard {

/** A fixed number of threads that run tasks in the order of submission. */
class ThreadPool {
 public:
  /** Throws INVALID_ARGUMENT unless 1 <= threads <= 1024. */
  explicit ThreadPool(int threads);
  /** Runs what is queued, then joins. Must not run on a thread of the pool. */
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(threads_.size()); }

  /** The task must not throw. The caller bounds how many it submits. */
  void submit(std::function<void()> task);

  /**
   * Calls body(0) to body(count - 1), in any order, on the caller and on idle threads of the pool; returns when all
   * have ended. May be called from a thread of the pool and nested. The first exception of a body is rethrown, and
   * bodies not begun by then are skipped.
   */
  void parallel_for(size_t count, const std::function<void(size_t)>& body);

 private:
  struct Loop;

  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace switchyard
