#include "runtime/serial_queue.h"

#include <utility>

#include "runtime/thread_start.h"

namespace switchyard {

SerialQueue::SerialQueue(const char* name)
    : thread_([this, name] {
        start_thread(name);
        work();
      }) {}

SerialQueue::~SerialQueue() {
  close();
  thread_.join();
}

bool SerialQueue::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return false;
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void SerialQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_one();
}

void SerialQueue::work() {
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

}  // namespace switchyard
