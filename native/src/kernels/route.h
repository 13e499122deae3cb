#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/gate.h"

namespace switchyard {

/** What is done with the rows of a chunk on their way to the experts. */
struct RouteTask {
  /** [row_count, hidden] BF16 */
  const std::uint16_t* rows;
  std::size_t row_count;
  std::size_t hidden;
  /** [hidden] BF16; null: the rows go on as they are. */
  const std::uint16_t* norm_weight;
  float epsilon;
  /** Added to the norm's weight; negative zero changes nothing. */
  float norm_offset = -0.0f;
  /** Where normalised rows go, [row_count, hidden]. */
  std::uint16_t* normed;
  /** Null: experts and weights were given, and there are no shared ones. */
  const Gate* gate;
  /** The first top_k experts and weights of every row are there. */
  bool given = false;
  /** As in Gate::route. */
  std::span<const float> bias;
  const std::uint32_t* token_ids = nullptr;
  /** Where the gate's choice goes, [row_count, slots]. */
  std::uint32_t* experts;
  float* weights;
};

struct RouteFigures {
  /** Rows that hold NaN or infinity. */
  std::size_t non_finite = 0;
  /** Of the thread. Rows on their way into a gate are normalised in the gate's time, but for the sum of their squares. */
  double norm_seconds = 0;
  double gate_seconds = 0;
};

/**
 * Normalises and gates rows [first, first + count), as normalize_rows and Gate::route do, in blocks that stay in the cache:
 * each part of a row is normalised, written and handed to the gate in one go. Any ranges may run at once.
 */
RouteFigures route_rows(const RouteTask& task, std::size_t first, std::size_t count);

}  // namespace switchyard
