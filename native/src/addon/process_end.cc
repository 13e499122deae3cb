#include "addon/process_end.h"

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <utility>

#include "addon/arguments.h"
#include "addon/operation.h"
#include "runtime/thread_start.h"

namespace switchyard::addon {
namespace {

constexpr uint64_t milliseconds_max = 24 * 3600 * 1000;

/** Watches from a thread of its own, because the others may be what does not end. */
class ProcessEnd {
 public:
  void limit(uint64_t milliseconds, int status) {
    const std::lock_guard lock(mutex_);
    milliseconds_ = milliseconds;
    status_ = status;
    deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
    changed_.notify_one();
    if (!std::exchange(watching_, true)) std::thread([this] { watch(); }).detach();
  }

 private:
  void watch() {
    start_thread("end");
    std::unique_lock lock(mutex_);
    while (std::chrono::steady_clock::now() < deadline_) changed_.wait_until(lock, deadline_);
    if (status_ != 0) say();
    _exit(status_);
  }

  /** Only what a pipe takes at once: its reader may be what does not end. */
  void say() const {
    pollfd output{.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
    if (poll(&output, 1, 0) != 1 || (output.revents & POLLOUT) == 0) return;
    dprintf(STDERR_FILENO, "switchyard: the process has not ended within %ju ms and is cut\n",
            static_cast<uintmax_t>(milliseconds_));
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool watching_ = false;
  uint64_t milliseconds_ = 0;
  int status_ = 0;
  std::chrono::steady_clock::time_point deadline_;
};

/** It outlives whatever the process's end destroys. */
ProcessEnd& process_end() {
  static auto* const instance = new ProcessEnd;
  return *instance;
}

}  // namespace

void export_process_end(Napi::Object exports) {
  export_function(exports, "endWithin", [](const Napi::CallbackInfo& info) {
    process_end().limit(to_integer(info[0], "milliseconds", 0, milliseconds_max),
                        static_cast<int>(to_integer(info[1], "exitStatus", 0, 255)));
    return info.Env().Undefined();
  });
}

}  // namespace switchyard::addon
