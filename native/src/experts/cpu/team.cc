#include "experts/cpu/team.h"

#include <immintrin.h>

#include <string>
#include <system_error>

#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

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
    for (int member = 1; member < members; ++member) threads_.emplace_back([this, member] { follow(member); });
  } catch (const std::system_error& error) {
    close();
    throw Error(Code::resource_exhausted, "threads is " + std::to_string(members) + "; the system gave " +
                                              std::to_string(threads_.size() + 1) + ": " + error.what());
  }
}

Team::~Team() { close(); }

void Team::close() {
  closing_ = true;
  phase_.fetch_add(1, std::memory_order_release);
  phase_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(size_t tasks, const std::function<void(size_t, size_t)>& body) {
  if (threads_.empty() || tasks < 2) {
    for (size_t task = 0; task < tasks; ++task) body(0, task);
    return;
  }
  body_ = &body;
  tasks_ = tasks;
  next_task_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<uint32_t>(threads_.size()), std::memory_order_relaxed);
  phase_.fetch_add(1, std::memory_order_release);
  phase_.notify_all();
  take_tasks(0);
  for (uint32_t busy = busy_.load(std::memory_order_acquire); busy != 0; busy = busy_.load(std::memory_order_acquire)) {
    await_change(busy_, busy);
  }
}

void Team::follow(size_t member) {
  uint32_t seen = 0;
  for (;;) {
    await_change(phase_, seen);
    seen = phase_.load(std::memory_order_acquire);
    if (closing_) return;
    take_tasks(member);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

void Team::take_tasks(size_t member) {
  for (;;) {
    const size_t task = next_task_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks_) return;
    (*body_)(member, task);
  }
}

}  // namespace switchyard::cpu
