#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <utility>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

/** To copy as much takes longer than to wake the thread. */
constexpr size_t heavy_bytes = 256 * 1024;
/** For so long after a message that takes time the thread drives by itself: more are likely to come. */
constexpr auto heavy_time = std::chrono::milliseconds(10);
/** Looks at UCX before what has come is used. */
constexpr int looks_max = 16;
/** Turns in a row that find nothing, although UCX cannot wait. */
constexpr unsigned vain_turns_max = 64;

}  // namespace

std::optional<int> Fabric::Progress::attach_loop() {
  {
    const std::lock_guard lock(mutex_);
    // One may block until the other has got something.
    if (has_loop_) has_several_ = true;
    has_loop_ = !has_several_;
    if (has_loop_) return loop_events_;
  }
  wake();
  return std::nullopt;
}

void Fabric::Progress::detach_loop() {
  has_loop_ = false;
  wake();
}

/** What wakes UCX, which is armed, wakes the loop from now on, unless the system refuses that. */
void Fabric::Progress::leave_to_loop() {
  loops_turn_ = true;
  armed_ = true;
  waits_.forget();
  for (const int descriptor : wakes_) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = descriptor}};
    if (epoll_ctl(loop_events_, EPOLL_CTL_ADD, descriptor, &event) != 0) return leave_to_thread();
  }
}

void Fabric::Progress::leave_to_thread() {
  loops_turn_ = false;
  for (const int descriptor : wakes_) epoll_ctl(loop_events_, EPOLL_CTL_DEL, descriptor, nullptr);
}

void Fabric::Progress::keep_from_loop() { threads_until_ = std::chrono::steady_clock::now() + heavy_time; }

/** Whether a message of so many bytes must wait for the thread. */
bool Fabric::Progress::is_for_thread(size_t bytes) {
  if (bytes < heavy_bytes) return false;
  keep_from_loop();
  return loops_turn_;
}

/** Called by the thread now and then in the loop's turn: whether the loop has left alone what came since the last call. Then it gets no turn until it is back. */
bool Fabric::Progress::loop_stands_still() {
  pollfd events{.fd = loop_events_, .events = POLLIN, .revents = 0};
  const unsigned drives = drives_;
  const bool same = std::exchange(seen_drives_, drives) == drives;
  if (!same || (armed_ && poll(&events, 1, 0) <= 0)) return false;
  loop_stands_ = true;
  eventfd_write(back_events_, 1);
  return true;
}

/** What wakes the loop when it has stood still. */
void Fabric::Progress::loop_is_back() {
  eventfd_t ignored;
  eventfd_read(back_events_, &ignored);
  loop_stands_ = false;
}

bool Fabric::Progress::drive() {
  ++drives_;
  if (loop_stands_) loop_is_back();
  if (!loops_turn_) return false;
  std::unique_lock driving(driving_, std::try_to_lock);
  // Who sends, or the thread, which is about to take its turn.
  if (!driving) return true;
  if (!loops_turn_) return false;
  armed_ = false;
  const auto until_before = threads_until_;
  const auto is_light = [&] { return deferred_.empty() && threads_until_ == until_before && !streams_wait(); };
  const auto look = [&] {
    int looks = 0;
    while (looks < looks_max && is_light() && progress() != 0) ++looks;
    return looks > 0;
  };
  const bool busy = look();
  const auto now = std::chrono::steady_clock::now();
  if (busy) waits_.end(now);
  const bool looks_on = !busy && is_light() && waits_.looks_on(now);
  looked_ns_ = std::chrono::nanoseconds(waits_.looked()).count();
  if (looks_on) {
    driving.unlock();
    sched_yield();
    return true;
  }
  armed_ = !busy && is_light() && arm();
  vain_turns_ = busy || armed_ ? 0 : vain_turns_ + 1;
  if (is_light() && vain_turns_ < vain_turns_max) return !armed_;
  vain_turns_ = 0;
  leave_to_thread();
  wake();
  return false;
}

}  // namespace switchyard::ucx
