#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#define SWITCHYARD_NVTX 1
#endif

namespace switchyard::cuda {

/** A named range on the timeline of a profiler; nothing without one, or without NVTX's headers at build time. */
class Range {
 public:
#ifdef SWITCHYARD_NVTX
  explicit Range(const char* name) { nvtxRangePushA(name); }
  ~Range() { nvtxRangePop(); }
#else
  explicit Range(const char*) {}
  ~Range() {}
#endif
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace switchyard::cuda
