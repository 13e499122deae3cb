#include "ucx/peer_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "kernels/pack.h"
#include "kernels/streaming.h"
#include "runtime/error.h"

namespace switchyard::ucx {
namespace {

constexpr size_t page_bytes = 4096;

/** The peer names any file of any process: only slab memory is opened, because opening others can have effects. */
bool is_slab_memory(const std::string& path) {
  std::string target(256, '\0');
  const ssize_t length = readlink(path.c_str(), target.data(), target.size());
  const std::string wanted = std::string("/memfd:") + MemoryFile::name;
  return length > 0 && target.compare(0, wanted.size(), wanted) == 0;
}

}  // namespace

std::shared_ptr<PeerFile> PeerFile::open(const Beacon& beacon) {
  // A peer that names this process would have it read itself; there is no honest use for that.
  if (beacon.process <= 0 || beacon.process == getpid()) return nullptr;
  const std::string path = "/proc/" + std::to_string(beacon.process) + "/fd/" + std::to_string(beacon.descriptor);
  if (!is_slab_memory(path)) return nullptr;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return nullptr;
  std::shared_ptr<PeerFile> file(new PeerFile(beacon, descriptor));
  // Memory whose file shrinks under a mapping kills whoever reads it.
  const int seals = fcntl(descriptor, F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK)) return nullptr;
  return file;
}

PeerFile::~PeerFile() {
  if (mapped_) munmap(const_cast<std::byte*>(mapped_), mapped_length_);
  close(descriptor_);
}

/** Maps as much of the file as there is, if these bytes are not mapped yet. */
const std::byte* PeerFile::at(uint64_t offset, size_t length) {
  if (offset <= mapped_length_ && length <= mapped_length_ - offset) return mapped_ + offset;
  struct stat status {};
  if (fstat(descriptor_, &status) != 0) return nullptr;
  const auto file_length = static_cast<size_t>(status.st_size);
  if (offset > file_length || length > file_length - offset) return nullptr;
  void* mapped = mapped_ ? mremap(const_cast<std::byte*>(mapped_), mapped_length_, file_length, MREMAP_MAYMOVE)
                         : mmap(nullptr, file_length, PROT_READ, MAP_SHARED, descriptor_, 0);
  if (mapped == MAP_FAILED) return nullptr;
  mapped_ = static_cast<const std::byte*>(mapped);
  mapped_length_ = file_length;
  return mapped_ + offset;
}

std::unique_ptr<PeerMemory> PeerMemory::open(const Beacon& beacon, const Mark& mark,
                                             const std::shared_ptr<PeerFile>& known) {
  const auto if_marked = [&](std::shared_ptr<PeerFile> file) -> std::unique_ptr<PeerMemory> {
    if (!file) return nullptr;
    std::unique_ptr<PeerMemory> memory(new PeerMemory(std::move(file), beacon.mark_offset, mark));
    return memory->marked() ? std::move(memory) : nullptr;
  };
  if (known && known->is_named_by(beacon)) {
    if (auto memory = if_marked(known)) return memory;
  }
  return if_marked(PeerFile::open(beacon));
}

bool PeerMemory::read(uint64_t offset, size_t length, void* out) {
  if (!marked()) return false;
  const std::byte* from = file_->at(offset, length);
  if (from == nullptr) return false;
  copy(out, from, length, worth_streaming(length));
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return marked();
}

bool PeerMemory::gather(uint64_t offset, size_t row_bytes, std::span<const uint32_t> indices, std::byte* out) {
  const size_t rows = indices.empty() ? 0 : size_t{std::ranges::max(indices)} + 1;
  if (row_bytes > SIZE_MAX / (rows + 1) || !marked()) return false;
  const std::byte* from = file_->at(offset, rows * row_bytes);
  if (from == nullptr) return false;
  pack_rows(from, row_bytes, indices, 0, indices.size(), out);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return marked();
}

bool PeerMemory::marked() {
  const std::byte* at = file_->at(mark_offset_, sizeof(Mark));
  return at != nullptr && std::memcmp(at, mark_.data(), sizeof(Mark)) == 0;
}

HeldMark::HeldMark(MemoryFile& file, const Mark& mark) : file_(file), block_(file.map(page_bytes)) {
  std::memcpy(block_.data, mark.data(), sizeof(Mark));
}

HeldMark::~HeldMark() {
  wipe();
  file_.unmap(block_, page_bytes);
}

Beacon HeldMark::beacon() const { return {getpid(), file_.descriptor(), block_.offset}; }

void HeldMark::wipe() {
  std::memset(block_.data, 0, sizeof(Mark));
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

Mark random_mark() {
  Mark mark;
  if (getentropy(mark.data(), mark.size()) != 0) throw Error(Code::internal, "the system gives no random bytes");
  return mark;
}

}  // namespace switchyard::ucx
