#pragma once

#include <array>
#include <span>

#include "experts/cuda/expert.h"

namespace switchyard::cuda {

/** Rows of one expert, all of it in device memory. Works of one run have one shape and must not share what they write. */
struct SegmentWork {
  const CudaExpert* expert;
  size_t row_count;
  /** [row_count, hidden_padded] */
  const uint16_t* rows;
  /** [row_count, intermediate] */
  uint16_t* intermediate;
  /** [row_count, hidden_padded] */
  uint16_t* output;
};

/**
 * Queues expert FFNs. Small segments leave most of the device idle, so the segments of one run are spread over several
 * streams; a segment that would be alone is cut in two, so that the tensor cores have work while one part is activated. What comes
 * before and after the run in the caller's stream is ordered with all of them. One run at a time.
 */
class Ffn {
 public:
  void run(std::span<const SegmentWork> works, cudaStream_t stream);

 private:
  /** A product of 128 rows keeps a tenth to a third of the device busy. The first lane is the caller's stream. */
  static constexpr size_t lanes_count = 8;
  struct Workspace : DeviceMemory {
    Workspace() : DeviceMemory(workspace_bytes, "a product's workspace") {}
  };
  struct Lane {
    Stream stream;
    Event ended;
  };

  static void run_lane(std::span<const SegmentWork> works, const DeviceMemory& workspace, cudaStream_t stream);

  std::array<Workspace, lanes_count> workspaces_;
  std::array<Lane, lanes_count - 1> others_;
  Event begun_;
};

}  // namespace switchyard::cuda
