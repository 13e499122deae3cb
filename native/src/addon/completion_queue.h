#pragma once

#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

namespace switchyard::addon {

class Operation;

/**
 * Brings ended operations of one environment back to its JS thread: one thread-safe function with a queue of one
 * entry, and one call that settles everything that has ended by then. It keeps the process alive only while
 * operations are pending.
 */
class CompletionQueue {
 public:
  /** Operations pending at a time. */
  static constexpr size_t pending_max = 4096;

  static std::shared_ptr<CompletionQueue> create(Napi::Env env);
  ~CompletionQueue();

  /** JS thread. Throws RESOURCE_EXHAUSTED when `pending_max` operations are pending. */
  void begin();
  /** Any thread, once for every begin(). The last use of the operation by its thread. */
  void complete(std::unique_ptr<Operation> operation);
  /** True once the environment ends: operations not begun are skipped. Any thread. */
  bool closed() const { return closed_.load(std::memory_order_relaxed); }

  /**
   * JS thread, from the environment's clean-up hook. Waits for operations that are running, because they use
   * memory that dies with the environment, and drops all of them unsettled.
   */
  void close();

 private:
  CompletionQueue() = default;

  static void call(napi_env env, napi_value callback, void* context, void* data);
  void settle_all(Napi::Env env);

  napi_env env_ = nullptr;
  napi_threadsafe_function function_ = nullptr;
  size_t pending_ = 0;
  std::atomic<bool> closed_{false};

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::vector<std::unique_ptr<Operation>> ended_;
  bool scheduled_ = false;
  /** Threads that use the function, which close() releases. */
  size_t calling_ = 0;
};

}  // namespace switchyard::addon
