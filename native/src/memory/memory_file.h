#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace switchyard {

/** Memory of a file: where it is mapped, and where it lies in the file. */
struct Block {
  std::byte* data;
  uint64_t offset;
};

/**
 * A file that exists in memory alone (memfd), and the blocks that this process has mapped of it. Thread-safe. The file only
 * grows, and is sealed to do so; the memory of a block goes back to the system when it is unmapped, its place is used
 * again for a block of the same size.
 */
class MemoryFile {
 public:
  /** What the system calls it, among the open files of the process. */
  static constexpr const char* name = "switchyard-slabs";

  /** Throws INTERNAL if the system has no such files. */
  MemoryFile();
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int descriptor() const { return descriptor_; }
  /** Zeros. `capacity` is a multiple of the page. Throws RESOURCE_EXHAUSTED. */
  Block map(size_t capacity);
  void unmap(const Block& block, size_t capacity);

 private:
  uint64_t place(size_t capacity);

  int descriptor_;
  std::mutex mutex_;
  uint64_t end_ = 0;
  /** By capacity: places whose block was unmapped. */
  std::unordered_map<size_t, std::vector<uint64_t>> free_;
};

}  // namespace switchyard
