#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace switchyard {

/** One thread that runs tasks one after the other, for devices that serve one caller at a time. */
class SerialQueue {
 public:
  /** `name` names the thread: a literal of at most 15 characters. */
  explicit SerialQueue(const char* name);
  /** Runs what is queued, then joins. Must not run on the queue's own thread. */
  ~SerialQueue();
  SerialQueue(const SerialQueue&) = delete;
  SerialQueue& operator=(const SerialQueue&) = delete;

  /** The task must not throw. The caller bounds how many it submits. Returns false if the queue is closed. */
  bool submit(std::function<void()> task);
  /** Refuses new tasks and lets the thread end after what is queued; does not wait. Idempotent. */
  void close();

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace switchyard
