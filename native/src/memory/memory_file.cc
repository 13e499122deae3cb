#include "memory/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr size_t huge_page_bytes = size_t{2} << 20;

Error no_memory(size_t capacity) {
  return Error(Code::resource_exhausted,
               "the operating system gave no memory for a slab of " + std::to_string(capacity) + " bytes");
}

}  // namespace

MemoryFile::MemoryFile() : descriptor_(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
  if (descriptor_ < 0) throw Error(Code::internal, "the operating system has no files in memory (memfd_create)");
  fcntl(descriptor_, F_ADD_SEALS, F_SEAL_SHRINK);
}

MemoryFile::~MemoryFile() { close(descriptor_); }

Block MemoryFile::map(size_t capacity) {
  const uint64_t offset = place(capacity);
  void* memory =
      mmap(nullptr, capacity, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, static_cast<off_t>(offset));
  if (memory == MAP_FAILED) {
    const std::lock_guard lock(mutex_);
    free_[capacity].push_back(offset);
    throw no_memory(capacity);
  }
  // Large blocks are streamed through: huge pages spare page faults. It is advice, so failure is fine.
  if (capacity >= huge_page_bytes) madvise(memory, capacity, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(memory), offset};
}

uint64_t MemoryFile::place(size_t capacity) {
  const std::lock_guard lock(mutex_);
  auto& places = free_[capacity];
  if (!places.empty()) {
    const uint64_t offset = places.back();
    places.pop_back();
    return offset;
  }
  const uint64_t alignment = capacity >= huge_page_bytes ? huge_page_bytes : 1;
  const uint64_t offset = (end_ + alignment - 1) / alignment * alignment;
  if (ftruncate(descriptor_, static_cast<off_t>(offset + capacity)) != 0) throw no_memory(capacity);
  end_ = offset + capacity;
  return offset;
}

void MemoryFile::unmap(const Block& block, size_t capacity) {
  // Another process may have the file mapped: only a hole in it gives the memory back.
  fallocate(descriptor_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(block.offset),
            static_cast<off_t>(capacity));
  munmap(block.data, capacity);
  const std::lock_guard lock(mutex_);
  free_[capacity].push_back(block.offset);
}

}  // namespace switchyard
