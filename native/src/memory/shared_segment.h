#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace switchyard {

/**
 * Part of a segment of POSIX shared memory (a file in /dev/shm) that another process has made for rows. It is read and written by
 * calls of the system and never mapped, because a mapping of a segment that is cut short ends the process. Thread-safe.
 */
class SharedSegment {
 public:
  /**
   * The `bytes` from `offset` on of the segment `key`, as shm_open names it. Throws INVALID_ARGUMENT for a key that is no name of a
   * segment, and a segment that is not there, is shorter, belongs to another user than this process runs as, or is UCX's.
   */
  static std::shared_ptr<const SharedSegment> open(const std::string& key, std::size_t offset, std::size_t bytes);
  ~SharedSegment();
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  std::size_t size() const { return bytes_; }
  /** Whether its name is gone, so that nobody can open it any more. */
  bool unlinked() const;

  /** Throws INVALID_ARGUMENT for what lies beyond its size, or beyond the end that the segment has now. */
  void read(std::size_t offset, std::size_t bytes, std::byte* out) const;
  void write(std::size_t offset, std::size_t bytes, const std::byte* from) const;

 private:
  SharedSegment(std::string key, int descriptor, std::size_t offset, std::size_t bytes)
      : key_(std::move(key)), descriptor_(descriptor), offset_(offset), bytes_(bytes) {}

  std::size_t length() const;
  void check(std::size_t offset, std::size_t bytes) const;

  const std::string key_;
  const int descriptor_;
  const std::size_t offset_;
  const std::size_t bytes_;
};

}  // namespace switchyard
