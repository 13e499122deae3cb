#pragma once

#include <napi.h>
#include <uv.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace switchyard::addon {

class Operation;

/**
 * Brings ended operations of one environment back to its JS thread: a handle of its event loop, and one call that
 * settles everything that has ended by then. It keeps the process alive only while operations are pending that ask for it.
 */
class CompletionQueue : public std::enable_shared_from_this<CompletionQueue> {
 public:
  /** JS thread. The queue closes when the environment ends, after the hooks that were added later. */
  static std::shared_ptr<CompletionQueue> create(Napi::Env env);
  ~CompletionQueue();

  /**
   * JS thread. Whether an operation that runs in its call may settle there, and takes its share of those that may in a turn of the event loop. When
   * they are through, one must come back through the queue: chains of them must not keep messages and timers waiting.
   */
  bool may_settle_now(int share);
  /** JS thread. Whoever starts operations bounds how many there are. */
  void begin(bool keeps_process);
  /** Any thread, once for every begin(). The last use of the operation by its thread. */
  void complete(std::unique_ptr<Operation> operation);
  /** JS thread, in a callback of its event loop: runs `work`, and settles at once what ends in it. */
  void settle_with(const std::function<void()>& work);
  /** True once the environment ends: operations not begun are skipped. Any thread. */
  bool closed() const { return closed_.load(std::memory_order_relaxed); }

 private:
  explicit CompletionQueue(Napi::Env env);

  void settle_all();
  /**
   * JS thread, when the environment ends. Waits for operations that are running, because they use memory that dies
   * with the environment, drops all of them unsettled, and closes the handle, for which the environment waits.
   */
  void close(napi_async_cleanup_hook_handle hook);

  const Napi::Env env_;
  /** What the promises settle in. */
  std::optional<Napi::AsyncContext> context_;
  uv_async_t ended_event_{};
  size_t pending_ = 0;
  /** Of those, the ones that keep the process. */
  size_t keeping_ = 0;
  /** Operations that may settle in their calls until the queue settles some. */
  int settling_now_;
  std::atomic<bool> closed_{false};
  /** Threads that may use the handle, which close() closes. */
  std::atomic<size_t> signalling_{0};

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::unique_ptr<Operation>> ended_;

  /** Of the open handle, and of the environment that waits for its close: the loop must find the queue. */
  std::shared_ptr<CompletionQueue> self_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

}  // namespace switchyard::addon
