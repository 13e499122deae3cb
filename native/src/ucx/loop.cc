#include <sys/epoll.h>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

/** To copy more takes longer than to wake the thread. */
constexpr size_t light_bytes_max = 128 * 1024;
/** Looks at UCX before what has come is used. */
constexpr int looks_max = 16;

}  // namespace

std::optional<int> Fabric::Progress::attach_loop() {
  if (has_loop_.exchange(true)) return std::nullopt;
  return loop_events_;
}

void Fabric::Progress::detach_loop() {
  has_loop_ = false;
  wake();
}

/** What wakes UCX wakes the loop from now on, unless the system refuses that. */
void Fabric::Progress::leave_to_loop() {
  loops_turn_ = true;
  for (const int descriptor : {worker_events_, stream_events_}) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = descriptor}};
    if (epoll_ctl(loop_events_, EPOLL_CTL_ADD, descriptor, &event) != 0) return leave_to_thread();
  }
}

void Fabric::Progress::leave_to_thread() {
  loops_turn_ = false;
  for (const int descriptor : {worker_events_, stream_events_}) epoll_ctl(loop_events_, EPOLL_CTL_DEL, descriptor, nullptr);
}

/** Whether a message of so many bytes must wait for the thread, which drives for some time after any that is as long. */
bool Fabric::Progress::is_for_thread(size_t bytes) {
  if (bytes <= light_bytes_max) return false;
  heavy_at_ = std::chrono::steady_clock::now();
  return loops_turn_;
}

bool Fabric::Progress::drive() {
  if (!loops_turn_) return false;
  const std::unique_lock driving(driving_, std::try_to_lock);
  // Who sends, or the thread, which is about to take its turn.
  if (!driving) return true;
  if (!loops_turn_) return false;
  const auto heavy_before = heavy_at_;
  const auto is_light = [&] { return deferred_.empty() && heavy_at_ == heavy_before && !streams_wait(); };
  bool busy = false;
  for (int look = 0; look < looks_max && is_light() && ucp_worker_progress(worker_) != 0; ++look) busy = true;
  if (is_light()) return busy || ucp_worker_arm(worker_) != UCS_OK;
  leave_to_thread();
  wake();
  return false;
}

}  // namespace switchyard::ucx
