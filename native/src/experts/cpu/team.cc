#include "experts/cpu/team.h"

#include <immintrin.h>

#include <string>
#include <system_error>

#include "runtime/error.h"
#include "runtime/thread_start.h"

namespace switchyard::cpu {
namespace {

/** In the place of a task: above every task's number. */
constexpr uint32_t none = 0xffffffff;

/** Waits until `value` is no longer `old`: some ten microseconds awake, then asleep. */
void await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  constexpr int spins = 400;
  for (int spin = 0; spin < spins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    _mm_pause();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

Team::Team(int members) {
  if (members < 1 || members > 1024) throw_invalid("threads", members, "1 to 1024");
  threads_.reserve(members - 1);
  try {
    for (int member = 1; member < members; ++member) {
      threads_.emplace_back([this, member] {
        start_thread("experts");
        follow(member);
      });
    }
  } catch (const std::system_error& error) {
    close();
    throw Error(Code::resource_exhausted, "threads is " + std::to_string(members) + "; the system gave " +
                                              std::to_string(threads_.size() + 1) + ": " + error.what());
  }
}

Team::~Team() { close(); }

void Team::close() {
  closing_.store(true, std::memory_order_relaxed);
  phase_.fetch_add(1, std::memory_order_release);
  phase_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(size_t tasks, const std::function<void(size_t, size_t)>& body) {
  if (threads_.empty() || tasks < 2) {
    for (size_t task = 0; task < tasks; ++task) body(0, task);
    return;
  }
  const uint32_t phase = phase_.load(std::memory_order_relaxed) + 1;
  // Closes the last phase before its number of tasks changes under a member that is late.
  next_.store(uint64_t{phase} << 32 | none, std::memory_order_release);
  body_ = &body;
  tasks_.store(static_cast<uint32_t>(tasks), std::memory_order_release);
  unfinished_.store(static_cast<uint32_t>(tasks), std::memory_order_relaxed);
  next_.store(uint64_t{phase} << 32, std::memory_order_release);
  phase_.store(phase, std::memory_order_release);
  phase_.notify_all();
  take_tasks(phase, 0);
  for (uint32_t left = unfinished_.load(std::memory_order_acquire); left != 0; left = unfinished_.load(std::memory_order_acquire)) {
    await_change(unfinished_, left);
  }
}

void Team::follow(size_t member) {
  uint32_t seen = 0;
  for (;;) {
    await_change(phase_, seen);
    seen = phase_.load(std::memory_order_acquire);
    if (closing_.load(std::memory_order_relaxed)) return;
    take_tasks(seen, member);
  }
}

void Team::take_tasks(uint32_t phase, size_t member) {
  uint64_t next = next_.load(std::memory_order_acquire);
  for (;;) {
    const uint32_t task = static_cast<uint32_t>(next);
    if (next >> 32 != phase || task >= tasks_.load(std::memory_order_acquire)) return;
    if (!next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    (*body_)(member, task);
    // The last one wakes the caller of `run`; changes before that are none of its concern.
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    next = next_.load(std::memory_order_acquire);
  }
}

}  // namespace switchyard::cpu
