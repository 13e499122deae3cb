#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "experts/cuda/calls.h"

namespace switchyard::cuda {

/** Rows that the copy engine fetches from where they lie: pinned memory. */
struct SpanCopy {
  const uint16_t* source;
  size_t landing_row;
  size_t rows;
};

/** Rows of one expert, side by side in the batch's output, which starts with row `output_row`. */
struct Segment {
  const Expert* expert;
  size_t output_row;
  size_t rows;
  /** The rows lie side by side in the landing area, from there on, and need no gathering. */
  bool direct;
  size_t landing_row;
};

/** Rows of the batch's output that go to one place of the host. */
struct OutputCopy {
  uint16_t* target;
  size_t output_row;
  size_t rows;
  /** The copy engine writes them there itself; otherwise they come through staging memory. */
  bool pinned;
};

/**
 * Where the rows of a batch travel. Rows reach the device in its landing area: spans of pinned memory as they are, at
 * most twice the rows needed, and the others one by one through staging memory, behind the spans. Output row i is
 * computed from landing row `sources[i]`, times `weights[i]` if there are weights.
 */
struct Plan {
  size_t rows = 0;
  std::vector<SpanCopy> spans;
  /** Host rows to gather into staging memory, in this order; they land from `staged_landing_row` on. */
  std::vector<const uint16_t*> staged;
  size_t staged_landing_row = 0;
  std::vector<uint32_t> sources;
  /** Empty if no row is weighed. */
  std::vector<float> weights;
  /** One for each expert. */
  std::vector<Segment> segments;
  std::vector<OutputCopy> outputs;
};

/** The most landing rows of a batch, for each of its rows. */
constexpr size_t landing_rows_per_row = 2;
/** Landing rows can be used as they are if every one begins at 16 bytes. */
constexpr size_t direct_elements = 8;

/**
 * Shares out segments of so many rows over at most `lanes` lanes that compute side by side: lane i has the segments from
 * the end of lane i - 1 to its own, at least one, and about as much work as the others. Returns the ends.
 */
std::vector<size_t> share_out(std::span<const size_t> row_counts, size_t lanes);

/** Tells whether memory is registered with the device. */
using IsPinned = std::function<bool(const void* memory, size_t bytes)>;

/** Plans a batch of pieces of one hidden size. */
Plan make_plan(std::span<const Piece> pieces, size_t hidden, const IsPinned& is_pinned);

}  // namespace switchyard::cuda
