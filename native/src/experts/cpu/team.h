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
   * and returns when all have ended. One caller at a time; the body must not throw.
   */
  void run(size_t tasks, const std::function<void(size_t member, size_t task)>& body);

 private:
  void close();
  void follow(size_t member);
  void take_tasks(size_t member);

  const std::function<void(size_t, size_t)>* body_ = nullptr;
  size_t tasks_ = 0;
  bool closing_ = false;
  // On lines of their own: every member writes to the first, all poll the second.
  alignas(64) std::atomic<size_t> next_task_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<uint32_t> busy_{0};
  std::vector<std::thread> threads_;
};

}  // namespace switchyard::cpu
