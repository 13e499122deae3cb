#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace fake_cuda {

/** Where one thing happens after the other: streams of the device have the even numbers, threads of the host the odd ones. */
constexpr size_t line_of_stream(size_t stream) { return 2 * stream; }
constexpr size_t line_of_thread(size_t thread) { return 2 * thread + 1; }

/** How much of each line has happened before some moment: a vector clock. */
class Clock {
 public:
  void join(const Clock& other);
  /** One thing more of the line; returns its number. */
  uint64_t tick(size_t line);
  bool has_seen(size_t line, uint64_t number) const { return line < seen_.size() && seen_[line] >= number; }
  bool has_seen(const Clock& other) const;

 private:
  std::vector<uint64_t> seen_;
};

/** An operation of a stream, or an access by a thread: the kind, in words, and which one of its line's it is. */
struct Name {
  const char* kind = "";
  size_t line = 0;
  uint64_t number = 0;

  std::string text() const;
};

/** One of these, and what happened before it. */
struct Moment {
  Name name;
  Clock clock;

  bool is_after(const Name& other) const { return clock.has_seen(other.line, other.number); }
};

/**
 * Who wrote each byte of some memory last, and who has read it since. Two accesses of which one writes and neither happened
 * before the other are a hazard, whatever order they ran in: a wait is missing. Not thread-safe.
 */
class Memory {
 public:
  void add(const void* begin, size_t bytes);
  /** Returns the size; 0: nothing begins there. */
  size_t remove(const void* begin);
  bool holds(const void* begin, size_t bytes) const { return find(begin, bytes) != nullptr; }
  size_t bytes() const { return bytes_; }

  /** False, and a hazard, if not all of it is memory. */
  bool access(const void* begin, size_t bytes, bool writes, const Moment& moment);
  std::vector<std::string> hazards;

 private:
  struct Access {
    uintptr_t begin, end;
    bool writes;
    Name name;
  };
  struct Allocation {
    uintptr_t end;
    std::vector<Access> accesses;
  };
  Allocation* find(const void* begin, size_t bytes);
  const Allocation* find(const void* begin, size_t bytes) const { return const_cast<Memory*>(this)->find(begin, bytes); }

  std::map<uintptr_t, Allocation> allocations_;
  size_t bytes_ = 0;
};

}  // namespace fake_cuda
