#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "ucx/wire.h"

namespace switchyard::ucx {

/**
 * Memory of another process on this machine, read by the kernel's copy between processes: one copy, where UCX's shared
 * memory takes two for endpoints that survive the death of their peer. Process numbers are reused and mean something else
 * in another container, so a number that this side chose and the peer holds, its mark, is read with all that is read.
 */
class PeerMemory {
 public:
  /** Null unless process `beacon.process` lets itself be read and holds `mark` where its beacon says. Never this process. */
  static std::optional<PeerMemory> open(const Beacon& beacon, const Mark& mark);

  /** Copies `length` bytes at `address` to `out`. False if they, or the mark before or after them, are not there any more. */
  bool read(uint64_t address, size_t length, void* out) const;

 private:
  PeerMemory(const Beacon& beacon, const Mark& mark) : beacon_(beacon), mark_(mark) {}

  Beacon beacon_;
  Mark mark_;
};

/** Bytes that cannot be guessed. */
Mark random_mark();

/**
 * Whether the environment's UCX_TLS, as UCX reads it, leaves reading the peer's memory in use: unset, or with "cma" or a
 * name that stands for it ("all", "sm", "shm") in the list, or not in a list that begins with "^".
 */
bool peer_memory_allowed(const char* transports);

}  // namespace switchyard::ucx
