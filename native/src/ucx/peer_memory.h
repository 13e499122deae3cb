#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "memory/memory_file.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/**
 * The slab memory of another process of this machine, mapped here for reading: a message in it is received by one copy, where
 * UCX's shared memory takes two for endpoints that survive the death of their peer. Process numbers are reused and mean
 * something else in another container, so a number that this side chose, the mark, must be found in what is mapped. The owner
 * wipes the mark before it uses offered memory for something else. The memory outlives its owner until it is unmapped here.
 */
class PeerMemory {
 public:
  /** Null unless process `beacon.process` may be looked into and holds `mark` where its beacon says. Never this process. */
  static std::unique_ptr<PeerMemory> open(const Beacon& beacon, const Mark& mark);
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  /** Copies `length` bytes at `offset` to `out`. False if the file does not have them, or the mark is no longer there. */
  bool read(uint64_t offset, size_t length, void* out);
  /** As `read`, of the rows of `row_bytes` from `offset` on that `indices` names, side by side. */
  bool gather(uint64_t offset, size_t row_bytes, std::span<const uint32_t> indices, std::byte* out);

 private:
  PeerMemory(int descriptor, uint64_t mark_offset, const Mark& mark)
      : descriptor_(descriptor), mark_offset_(mark_offset), mark_(mark) {}
  bool reach(uint64_t offset, size_t length);
  bool marked();

  int descriptor_;
  uint64_t mark_offset_;
  Mark mark_;
  const std::byte* mapped_ = nullptr;
  size_t mapped_length_ = 0;
};

/** A number that the peer chose, kept where it can read it. It is wiped before it goes. */
class HeldMark {
 public:
  /** Throws RESOURCE_EXHAUSTED. `file` must outlive it. */
  HeldMark(MemoryFile& file, const Mark& mark);
  ~HeldMark();
  HeldMark(const HeldMark&) = delete;
  HeldMark& operator=(const HeldMark&) = delete;

  Beacon beacon() const;
  /** From now on nothing of this process that is read can be taken for what was offered. */
  void wipe();

 private:
  MemoryFile& file_;
  Block block_;
};

/** Bytes that cannot be guessed. */
Mark random_mark();

/**
 * Whether the environment's UCX_TLS, as UCX reads it, leaves shared memory in use: unset, or a list with a name of it, or a
 * list that begins with "^" and does not name it as a whole.
 */
bool peer_memory_allowed(const char* transports);

}  // namespace switchyard::ucx
