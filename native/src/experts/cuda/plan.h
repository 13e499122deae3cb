#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "experts/cuda/calls.h"

namespace switchyard::cuda {

/** Rows that the copy engine brings from where they lie: pinned memory. */
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
 * most twice the rows needed; behind them pinned rows that lie further apart, which a kernel fetches; behind these, through
 * staging memory, the rows that are not pinned. Output row i is computed from landing row `sources[i]`, times `weights[i]` if
 * there are weights.
 */
struct Plan {
  size_t rows = 0;
  std::vector<SpanCopy> spans;
  /** Host rows in the order in which they land, from `fetched_landing_row` on. */
  std::vector<const uint16_t*> fetched;
  size_t fetched_landing_row = 0;
  /** As `fetched`. */
  std::vector<const uint16_t*> staged;
  size_t staged_landing_row = 0;
  /** Of use to segments that are gathered. */
  std::vector<uint32_t> sources;
  /** Empty if no row is weighed. */
  std::vector<float> weights;
  /** One for each expert. */
  std::vector<Segment> segments;
  std::vector<OutputCopy> outputs;

  /** Whether every segment's rows are used as they land. */
  bool direct() const;
};

/** The most landing rows of a batch, for each of its rows. */
constexpr size_t landing_rows_per_row = 2;
/** Landing rows can be used as they are if every one begins at 16 bytes. */
constexpr size_t direct_elements = 8;

/**
 * Shares out segments of so many rows over at most `lanes` lanes that compute side by side, in tiles of `tile_rows` rows: lane i has
 * the segments from the end of lane i - 1 to its own, at least one, and about as much work as the others. Returns the ends.
 */
std::vector<size_t> share_out(std::span<const size_t> row_counts, size_t tile_rows, size_t lanes);

/**
 * Where a segment of `rows` rows among `total` is cut, so that one part is activated while the other multiplies; 0: nowhere. Only
 * one with most of the rows is: others have company. Both parts fill whole tiles.
 */
size_t cut_of(size_t rows, size_t total, size_t tile_rows);

/** Tells whether memory is registered with the device. */
using IsPinned = std::function<bool(const void* memory, size_t bytes)>;

/** Plans a batch of pieces of one hidden size. */
Plan make_plan(std::span<const Piece> pieces, size_t hidden, const IsPinned& is_pinned);

}  // namespace switchyard::cuda
