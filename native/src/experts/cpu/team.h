#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace switchyard::cpu {

/**
 * Threads that compute one phase after another in step. The phases of a small expert last microseconds,
 * so threads spin shortly before they sleep; a general pool would wake too late.
 */
class Team {
 public:
  /** Throws INVALID_ARGUMENT unless 1 <= members <= 1024. The caller of `run` is the first member. */
  explicit Team(int members);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int members() const { return static_cast<int>(threads_.size()) + 1; }

  /**
   * Calls body(member, task) once for every task below `tasks`, each task on the member that is free first,
   * and returns when all have ended, without waiting for members that got none. One caller at a time; fewer
   * than 2^32 tasks; the body must not throw.
   */
  void run(size_t tasks, const std::function<void(size_t member, size_t task)>& body);

 private:
  void close();
  void follow(size_t member);
  void take_tasks(uint32_t phase, size_t member);

  // A member reads these only while it holds a task, so `run` cannot have returned.
  const std::function<void(size_t, size_t)>* body_ = nullptr;
  std::atomic<uint32_t> tasks_{0};
  std::atomic<bool> closing_{false};
  // On lines of their own: all members write to the first and the last, and poll the second.
  /** Phase in the upper half, next task in the lower: a member that wakes late cannot take a task of another phase. */
  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<uint32_t> unfinished_{0};
  std::vector<std::thread> threads_;
};

}  // namespace switchyard::cpu
