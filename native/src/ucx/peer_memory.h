#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "memory/memory_file.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/**
 * The file of slab memory of another process of this machine, mapped here for reading as far as it was wanted. All channels to
 * the process share it: a mapping of its own costs each page of it anew.
 */
class PeerFile {
 public:
  /** Null unless process `beacon.process` may be looked into and holds slab memory there. Never this process. */
  static std::shared_ptr<PeerFile> open(const Beacon& beacon);
  ~PeerFile();
  PeerFile(const PeerFile&) = delete;
  PeerFile& operator=(const PeerFile&) = delete;

  /** Whether this is what the beacon names; numbers are reused, so only a mark that is found in it tells for sure. */
  bool is_named_by(const Beacon& beacon) const {
    return process_ == beacon.process && number_ == beacon.descriptor;
  }
  /** `length` bytes from `offset` on, until the next call; null if the file does not have them. */
  const std::byte* at(uint64_t offset, size_t length);

 private:
  PeerFile(const Beacon& beacon, int descriptor)
      : process_(beacon.process), number_(beacon.descriptor), descriptor_(descriptor) {}

  decltype(Beacon::process) process_;
  decltype(Beacon::descriptor) number_;
  int descriptor_;
  const std::byte* mapped_ = nullptr;
  size_t mapped_length_ = 0;
};

/**
 * The memory of a channel's peer: a message in it is received by one copy, where UCX's shared memory takes two for endpoints that
 * survive the death of their peer. Process numbers are reused and mean something else in another container, so a number that
 * this side chose, the mark, must be found in what is mapped. The owner wipes the mark before it uses offered memory for
 * something else. The memory outlives its owner until it is unmapped here.
 */
class PeerMemory {
 public:
  /** Null unless the process that the beacon names holds `mark` where the beacon says. `known`: what is mapped of it already, or null. */
  static std::unique_ptr<PeerMemory> open(const Beacon& beacon, const Mark& mark,
                                          const std::shared_ptr<PeerFile>& known = nullptr);

  /** Copies `length` bytes at `offset` to `out`. False if the file does not have them, or the mark is no longer there. */
  bool read(uint64_t offset, size_t length, void* out);
  /** As `read`, of the rows of `row_bytes` from `offset` on that `indices` names, side by side. */
  bool gather(uint64_t offset, size_t row_bytes, std::span<const uint32_t> indices, std::byte* out);
  /** For other channels to the same process. */
  const std::shared_ptr<PeerFile>& file() const { return file_; }

 private:
  PeerMemory(std::shared_ptr<PeerFile> file, uint64_t mark_offset, const Mark& mark)
      : file_(std::move(file)), mark_offset_(mark_offset), mark_(mark) {}
  bool marked();

  std::shared_ptr<PeerFile> file_;
  uint64_t mark_offset_;
  Mark mark_;
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

}  // namespace switchyard::ucx
