#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <vector>

#include "experts/cuda/device.h"
#include "experts/cuda/ffn.h"
#include "experts/cuda/plan.h"

namespace switchyard::cuda {

/** When the parts of a batch ran on the device. */
struct BatchTimes {
  struct Interval {
    /** Seconds since the ring was made, exact to a ten-millionth of them. */
    double begin;
    double seconds;
  };
  /** When the compute began, by the host's clock. */
  std::chrono::steady_clock::time_point started;
  Interval copy_in;
  Interval compute;
  Interval copy_out;
  size_t rows;
};

constexpr size_t slot_count = 4;

/** What batches of a shape take of the device, in bytes: Ring::reserve and, while its algorithms are chosen, a trial of products. */
constexpr size_t batch_bytes(const Shape& shape) {
  const size_t hidden_rows = slot_count * (landing_rows_per_row + 1) + 1;
  const size_t trial = std::max(shape.hidden_padded(), shape.intermediate()) * 2 + std::min(shape.hidden_padded(), shape.intermediate());
  return batch_rows_max * sizeof(uint16_t) * (hidden_rows * shape.hidden_padded() + shape.intermediate() + trial) + workspace_bytes;
}

/** What is left to batches of a device's memory, because their shape is not known before the first expert. */
constexpr size_t batch_bytes_kept = size_t{1} << 30;
static_assert(batch_bytes({.hidden = 7168, .ffn = 18432, .gated = true}) <= batch_bytes_kept);

/** Buffers of one batch on its way, and what it computes. */
struct Slot {
  /** Rows that are not in pinned memory pass through these. */
  PinnedMemory staging_in, staging_out;
  /** Plan::fetched, Plan::sources, Plan::weights, as far as the plan needs them. */
  PinnedMemory host_table;
  DeviceMemory table, landing, output;
  struct Interval {
    Event begin, end;
  };
  Interval copy_in, compute, copy_out;
  std::vector<Piece> pieces;
  Plan plan;
  bool busy = false;
  /** For the host callback. */
  const std::function<void(Slot&)>* copied_out = nullptr;
};

/**
 * Batches on three streams (copy in, compute, copy out), tied by events: while one is computed, the next is copied in
 * and the one before is copied out. A fourth tells the host of ends, so that no copy waits for the host. Each batch takes a slot of
 * buffers for its time. Nothing here waits for the device except where it says so. One thread at a time.
 */
class Ring {
 public:
  /** `copied_out` is called on a thread of CUDA when a batch has ended, and must not call CUDA. */
  Ring(int device, std::function<void(Slot&)> copied_out);
  /** Waits for what runs. */
  ~Ring();

  /** Makes room for batches of a shape. No batch may be under way. Throws RESOURCE_EXHAUSTED. */
  void reserve(const Shape& shape);

  /** A slot without a batch, or null. */
  Slot* free_slot();
  bool idle() const;
  /** Queues the batch that `slot.pieces` and `slot.plan` describe. */
  void launch(Slot& slot);
  /** After `copied_out`: brings staged rows to their places and tells the times. The slot is free then. */
  BatchTimes finish(Slot& slot);

  /** Throws DEVICE_LOST if the device has failed since: after some errors `copied_out` is never called. */
  void probe() const;
  /** Waits until the device writes to no memory any more, whatever state it is in. Returns the pieces of all batches. */
  std::vector<Piece> abandon();

 private:
  static void CUDART_CB on_copied_out(void* slot);
  void copy_in(Slot& slot, size_t hidden);
  void copy_table(Slot& slot);
  void compute(Slot& slot);
  void copy_out(Slot& slot, size_t hidden);

  std::function<void(Slot&)> copied_out_;
  std::array<const Stream*, 4> streams() const { return {&copy_in_, &compute_, &copy_out_, &tell_}; }

  /** Rows are fetched by a kernel, which must not wait until products are done. */
  Stream copy_in_{Stream::Priority::urgent};
  Stream compute_, copy_out_, tell_;
  Event origin_;
  Ffn ffn_;
  /** Shared by all batches, because computes are in order. */
  DeviceMemory gathered_, intermediate_;
  std::array<Slot, slot_count> slots_;
};

}  // namespace switchyard::cuda
