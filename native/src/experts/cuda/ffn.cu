#include <algorithm>

#include "experts/cuda/ffn.h"
#include "experts/cuda/kernels.h"
#include "experts/cuda/plan.h"

namespace switchyard::cuda {

namespace {

size_t tile_rows_of(const SegmentWork& work) {
  const Products& products = *work.expert->products;
  return std::max(products.first.tile_rows(), products.second.tile_rows());
}

/** The first rows of a segment, or those behind them. */
SegmentWork part_of(const SegmentWork& work, size_t first_row, size_t row_count) {
  const Shape& shape = work.expert->shape();
  return {.expert = work.expert,
          .row_count = row_count,
          .rows = work.rows + first_row * shape.hidden_padded(),
          .intermediate = work.intermediate + first_row * shape.intermediate(),
          .output = work.output + first_row * shape.hidden_padded()};
}

std::vector<SegmentWork> cut_large(std::span<const SegmentWork> works) {
  size_t total = 0;
  for (const SegmentWork& work : works) total += work.row_count;
  std::vector<SegmentWork> parts;
  for (const SegmentWork& work : works) {
    const size_t cut = cut_of(work.row_count, total, tile_rows_of(work));
    if (cut > 0) parts.push_back(part_of(work, 0, cut));
    parts.push_back(part_of(work, cut, work.row_count - cut));
  }
  return parts;
}

}  // namespace

void Ffn::run(std::span<const SegmentWork> works, cudaStream_t stream) {
  const std::vector<SegmentWork> parts = cut_large(works);
  std::vector<size_t> row_counts;
  for (const SegmentWork& part : parts) row_counts.push_back(part.row_count);
  const std::vector<size_t> ends = share_out(row_counts, tile_rows_of(parts.front()), lanes_count);
  const auto works_of = [&](size_t lane) {
    const size_t first = lane == 0 ? 0 : ends[lane - 1];
    return std::span(parts).subspan(first, ends[lane] - first);
  };
  if (ends.size() > 1) begun_.record(stream);
  for (size_t lane = 1; lane < ends.size(); ++lane) begun_.hold(others_[lane - 1].stream);
  for (size_t lane = 0; lane < ends.size(); ++lane) {
    run_lane(works_of(lane), workspaces_[lane], lane == 0 ? stream : static_cast<cudaStream_t>(others_[lane - 1].stream));
  }
  for (size_t lane = 1; lane < ends.size(); ++lane) {
    const Lane& other = others_[lane - 1];
    other.ended.record(other.stream);
    other.ended.hold(stream);
  }
}

void Ffn::run_lane(std::span<const SegmentWork> works, const DeviceMemory& memory, cudaStream_t stream) {
  void* const workspace = memory.as<void>();
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
