#include "experts/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

constexpr size_t huge_page_bytes = size_t{2} << 20;

}  // namespace

PackedMemory::PackedMemory(size_t bytes, const char* what) {
  if (bytes == 0) return;
  // Small pieces take plain pages: a huge page for each would waste more than its reach saves.
  const bool huge = bytes >= huge_page_bytes;
  // What a huge page would be too large for at the end takes plain ones too.
  bytes_ = (bytes + page_bytes - 1) / page_bytes * page_bytes;
  const size_t slack = huge ? huge_page_bytes : 0;
  void* mapped = mmap(nullptr, bytes_ + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) {
    throw Error(Code::resource_exhausted, std::string(what) + ": the system gives no " + std::to_string(bytes_) + " bytes of memory");
  }
  if (!huge) {
    data_ = mapped;
    return;
  }
  // Mapped memory starts at any page: what lies before and after the aligned part goes back.
  char* const begin = static_cast<char*>(mapped);
  const size_t before = (huge_page_bytes - reinterpret_cast<uintptr_t>(begin) % huge_page_bytes) % huge_page_bytes;
  if (before > 0) munmap(begin, before);
  if (slack > before) munmap(begin + before + bytes_, slack - before);
  data_ = begin + before;
  // Advice only: without huge pages everything works, slower.
  madvise(data_, bytes_, MADV_HUGEPAGE);
}

PackedMemory::~PackedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

PackedMemory::PackedMemory(PackedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PackedMemory& PackedMemory::operator=(PackedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void PackedMemory::reserve(size_t bytes, const char* what) {
  if (bytes <= bytes_) return;
  *this = PackedMemory();
  // What would fill half of a huge page gets a whole one.
  const bool huge = bytes >= huge_page_bytes / 2;
  *this = PackedMemory(huge ? (bytes + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes : bytes, what);
}

double huge_page_share() {
  const PackedMemory memory(4 * huge_page_bytes, "huge pages");
  std::memset(memory.as<char>(), 1, memory.bytes());
  const auto address = reinterpret_cast<uintptr_t>(memory.as<char>());
  std::ifstream mappings("/proc/self/smaps");
  bool found = false;
  for (std::string line; std::getline(mappings, line);) {
    uintptr_t begin, end;
    size_t kibibytes;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      found = begin <= address && address < end;
    } else if (found && std::sscanf(line.c_str(), "AnonHugePages: %zu", &kibibytes) == 1) {
      // The system may join the mapping with another one.
      return std::min(1.0, 1024.0 * static_cast<double>(kibibytes) / static_cast<double>(memory.bytes()));
    }
  }
  return 0;
}

}  // namespace switchyard::cpu
