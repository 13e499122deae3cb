#include "experts/cuda/ffn.h"
#include "experts/cuda/kernels.h"
#include "experts/cuda/plan.h"

namespace switchyard::cuda {

void Ffn::run(std::span<const SegmentWork> works, cudaStream_t stream) {
  std::vector<size_t> row_counts;
  for (const SegmentWork& work : works) row_counts.push_back(work.row_count);
  const std::vector<size_t> ends = share_out(row_counts, lanes_.size());
  // The first lane is the caller's stream.
  if (ends.size() > 1) begun_.record(stream);
  for (size_t lane = 1; lane < ends.size(); ++lane) begun_.hold(lanes_[lane].stream);
  size_t first = 0;
  for (size_t lane = 0; lane < ends.size(); ++lane) {
    run_lane(works.subspan(first, ends[lane] - first), lanes_[lane], lane == 0 ? stream : static_cast<cudaStream_t>(lanes_[lane].stream));
    first = ends[lane];
  }
  for (size_t lane = 1; lane < ends.size(); ++lane) {
    lanes_[lane].ended.record(lanes_[lane].stream);
    lanes_[lane].ended.hold(stream);
  }
}

void Ffn::run_lane(std::span<const SegmentWork> works, Lane& lane, cudaStream_t stream) {
  void* const workspace = lane.workspace.as<void>();
  for (const SegmentWork& work : works) {
    work.expert->products->first.run(work.expert->first(), work.rows, work.intermediate, work.row_count, workspace, stream);
  }
  // Segments side by side are activated by one kernel: launches count where segments are small.
  for (size_t i = 0; i < works.size();) {
    const Shape& shape = works[i].expert->shape();
    uint16_t* const begin = works[i].intermediate;
    size_t rows = 0;
    for (; i < works.size() && works[i].intermediate == begin + rows * shape.intermediate(); ++i) rows += works[i].row_count;
    activate_rows(begin, shape, rows, stream);
  }
  for (const SegmentWork& work : works) {
    work.expert->products->second.run(work.expert->second(), work.intermediate, work.output, work.row_count, workspace, stream);
  }
}

}  // namespace switchyard::cuda
