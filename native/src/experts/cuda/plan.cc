#include "experts/cuda/plan.h"

#include <algorithm>
#include <unordered_map>

namespace switchyard::cuda {
namespace {

/** How rows travel. */
enum class Way { span, fetched, staged };

/** What a batch needs of the rows behind one pointer. */
struct Region {
  size_t first_row = SIZE_MAX;
  size_t end_row = 0;
  size_t entries = 0;
  Way way = Way::staged;
  /** Where a span lands. */
  size_t landing_row = 0;
};

using Regions = std::unordered_map<const uint16_t*, Region>;

std::span<const uint32_t> indices_of(const Piece& piece) { return piece.source().indices.subspan(piece.first, piece.count); }

/** Pieces of one expert side by side, experts in the order of their first piece. */
std::vector<const Piece*> by_expert(std::span<const Piece> pieces) {
  std::unordered_map<const Expert*, size_t> order;
  std::vector<const Piece*> sorted;
  for (const Piece& piece : pieces) {
    order.try_emplace(piece.call->expert, order.size());
    sorted.push_back(&piece);
  }
  std::stable_sort(sorted.begin(), sorted.end(), [&](const Piece* a, const Piece* b) {
    return order.at(a->call->expert) < order.at(b->call->expert);
  });
  return sorted;
}

/** A span behind the others; one that continues the last, in memory and on the device, becomes part of it. */
void add_span(const SpanCopy& span, size_t hidden, const IsPinned& is_pinned, Plan& plan) {
  if (!plan.spans.empty()) {
    SpanCopy& last = plan.spans.back();
    const size_t rows = last.rows + span.rows;
    // Memory that was registered in two parts is copied in two.
    if (last.source + last.rows * hidden == span.source && is_pinned(last.source, rows * hidden * sizeof *span.source)) {
      last.rows = rows;
      return;
    }
  }
  plan.spans.push_back(span);
}

/** Decides how each region travels and where it lands. */
Regions plan_ways(std::span<const Piece> pieces, size_t hidden, const IsPinned& is_pinned, Plan& plan) {
  Regions regions;
  std::vector<const uint16_t*> bases;
  for (const Piece& piece : pieces) {
    const auto [found, added] = regions.try_emplace(piece.source().rows);
    if (added) bases.push_back(found->first);
    Region& region = found->second;
    for (const uint32_t index : indices_of(piece)) {
      region.first_row = std::min<size_t>(region.first_row, index);
      region.end_row = std::max<size_t>(region.end_row, index + size_t{1});
    }
    region.entries += piece.count;
  }
  std::ranges::sort(bases);
  size_t landing_row = 0, fetched = 0;
  for (const uint16_t* base : bases) {
    Region& region = regions.at(base);
    const size_t rows = region.end_row - region.first_row;
    const uint16_t* const source = base + region.first_row * hidden;
    if (!is_pinned(source, rows * hidden * sizeof *source)) continue;
    if (rows > landing_rows_per_row * region.entries) {
      region.way = Way::fetched;
      fetched += region.entries;
      continue;
    }
    region.way = Way::span;
    region.landing_row = landing_row;
    add_span({source, landing_row, rows}, hidden, is_pinned, plan);
    landing_row += rows;
  }
  plan.fetched_landing_row = landing_row;
  plan.staged_landing_row = landing_row + fetched;
  return regions;
}

/** Lets a row that travels by itself land behind those before it; returns where. */
size_t add_row(const uint16_t* row, size_t landing_row, std::vector<const uint16_t*>& rows) {
  rows.push_back(row);
  return landing_row + rows.size() - 1;
}

void add_rows(const Piece& piece, size_t hidden, const Regions& regions, bool weighted, Plan& plan) {
  const ExpertInput& input = piece.source();
  const Region& region = regions.at(input.rows);
  const auto indices = indices_of(piece);
  for (size_t i = 0; i < indices.size(); ++i) {
    const uint16_t* const row = input.rows + indices[i] * hidden;
    const size_t source = region.way == Way::span      ? region.landing_row + indices[i] - region.first_row
                          : region.way == Way::fetched ? add_row(row, plan.fetched_landing_row, plan.fetched)
                                                       : add_row(row, plan.staged_landing_row, plan.staged);
    plan.sources.push_back(static_cast<uint32_t>(source));
    if (weighted) plan.weights.push_back(input.input_weights == nullptr ? 1.0f : input.input_weights[piece.first + i]);
  }
}

void add_output(const Piece& piece, size_t hidden, const IsPinned& is_pinned, Plan& plan) {
  const ExpertInput& input = piece.source();
  const size_t row_bytes = hidden * sizeof *input.output;
  const OutputCopy copy{input.output + (input.output_row + piece.first) * hidden, plan.rows, piece.count,
                        is_pinned(input.output + (input.output_row + piece.first) * hidden, piece.count * row_bytes)};
  plan.rows += piece.count;
  if (!plan.outputs.empty()) {
    OutputCopy& last = plan.outputs.back();
    const size_t rows = last.rows + copy.rows;
    const bool follows = last.target + last.rows * hidden == copy.target && last.pinned == copy.pinned;
    if (follows && copy.pinned == is_pinned(last.target, rows * row_bytes)) {
      last.rows = rows;
      return;
    }
  }
  plan.outputs.push_back(copy);
}

/** Whether the sources of a segment follow one another. */
bool consecutive(std::span<const uint32_t> sources) {
  for (size_t i = 1; i < sources.size(); ++i) {
    if (sources[i] != sources[i - 1] + 1) return false;
  }
  return true;
}

}  // namespace

bool Plan::direct() const { return std::ranges::all_of(segments, &Segment::direct); }

size_t cut_of(size_t rows, size_t total, size_t tile_rows) {
  constexpr size_t tiles_min = 2;
  const size_t tiles = rows / tile_rows;
  return 2 * rows > total && tiles >= 2 * tiles_min ? tiles / 2 * tile_rows : 0;
}

std::vector<size_t> share_out(std::span<const size_t> row_counts, size_t tile_rows, size_t lanes) {
  // A product computes whole tiles of rows, however few of them there are.
  const auto work_of = [tile_rows](size_t rows) { return (rows + tile_rows - 1) / tile_rows; };
  size_t work_left = 0;
  for (const size_t rows : row_counts) work_left += work_of(rows);
  std::vector<size_t> ends;
  size_t next = 0;
  for (size_t lanes_left = std::min(lanes, row_counts.size()); lanes_left > 0; --lanes_left) {
    const size_t share = (work_left + lanes_left - 1) / lanes_left;
    // Every later lane needs a segment too.
    const size_t end_max = row_counts.size() - (lanes_left - 1);
    size_t work = work_of(row_counts[next]);
    ++next;
    // A segment goes where the larger part of it fits, so that what is over or short evens out.
    while (next < end_max && (lanes_left == 1 || 2 * work + work_of(row_counts[next]) <= 2 * share)) work += work_of(row_counts[next++]);
    work_left -= work;
    ends.push_back(next);
  }
  return ends;
}

Plan make_plan(std::span<const Piece> pieces, size_t hidden, const IsPinned& is_pinned) {
  Plan plan;
  const Regions regions = plan_ways(pieces, hidden, is_pinned, plan);
  const bool weighted =
      std::any_of(pieces.begin(), pieces.end(), [](const Piece& piece) { return piece.source().input_weights != nullptr; });
  for (const Piece* piece : by_expert(pieces)) {
    const Expert* const expert = piece->call->expert;
    if (plan.segments.empty() || plan.segments.back().expert != expert) {
      plan.segments.push_back({.expert = expert, .output_row = plan.rows, .rows = 0, .direct = false, .landing_row = 0});
    }
    add_rows(*piece, hidden, regions, weighted, plan);
    add_output(*piece, hidden, is_pinned, plan);
    plan.segments.back().rows += piece->count;
  }
  const bool aligned = hidden % direct_elements == 0;
  for (Segment& segment : plan.segments) {
    const auto sources = std::span(plan.sources).subspan(segment.output_row, segment.rows);
    segment.landing_row = sources.front();
    segment.direct = aligned && !weighted && consecutive(sources);
  }
  return plan;
}

}  // namespace switchyard::cuda
