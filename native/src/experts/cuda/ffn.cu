#include <algorithm>

#include "experts/cuda/ffn.h"
#include "experts/cuda/kernels.h"

namespace switchyard::cuda {

void Ffn::run(std::span<const SegmentWork> works, cudaStream_t stream) {
  // The first lane is the caller's stream.
  const size_t lanes = std::min(works.size(), lanes_.size());
  if (lanes > 1) begun_.record(stream);
  for (size_t lane = 1; lane < lanes; ++lane) begun_.hold(lanes_[lane].stream);
  for (size_t i = 0; i < works.size(); ++i) {
    const size_t lane = i % lanes;
    run_segment(works[i], lanes_[lane], lane == 0 ? stream : static_cast<cudaStream_t>(lanes_[lane].stream));
  }
  for (size_t lane = 1; lane < lanes; ++lane) {
    lanes_[lane].ended.record(lanes_[lane].stream);
    lanes_[lane].ended.hold(stream);
  }
}

void Ffn::run_segment(const SegmentWork& work, Lane& lane, cudaStream_t stream) {
  const CudaExpert& expert = *work.expert;
  void* const workspace = lane.workspace.as<void>();
  expert.products->first.run(expert.first(), work.rows, work.intermediate, work.row_count, workspace, stream);
  activate_rows(work.intermediate, expert.shape(), work.row_count, stream);
  expert.products->second.run(expert.second(), work.intermediate, work.output, work.row_count, workspace, stream);
}

}  // namespace switchyard::cuda
