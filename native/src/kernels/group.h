#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/** One token batch for one worker; see RowGroup in native/index.ts. */
struct GroupPlan {
  std::uint32_t worker;
  /** [expert, count] pairs in ascending expert order. */
  std::vector<std::uint32_t> segments;
  /** Segment after segment, tokens ascending: index into `tokens`. */
  std::vector<std::uint32_t> row_indices;
  /** One per row index: token * top_k + position. */
  std::vector<std::uint32_t> slots;
  /** One per row index, or none. */
  std::vector<float> weights;
  /** One per row of the group, ascending. */
  std::vector<std::uint32_t> tokens;
};

/** What one plan may have; an empty span is no limit, otherwise there is one value per worker. */
struct GroupLimits {
  std::span<const double> rows_max;
  /** Of row indices. */
  std::span<const double> entries_max;
  /** Of the plan's rows times `row_cost` and its row indices times `entry_cost`. */
  std::span<const double> cost_max;
  double row_cost = 0;
  double entry_cost = 0;
};

/**
 * Groups [rows, top_k] choices by the worker that holds the expert: as many plans for each worker that gets rows as the
 * limits ask, by worker and then by token in ascending order. All of a token's experts at one worker are in one plan.
 * `worker_of` maps an expert to a worker below `workers`. `weights`: one per choice; empty: the plans have none.
 * Throws INVALID_ARGUMENT for an expert outside `worker_of`, a worker outside `workers`, or a token that alone is
 * beyond a limit.
 */
std::vector<GroupPlan> plan_groups(std::span<const std::uint32_t> experts, std::span<const float> weights,
                                   std::size_t top_k, std::span<const std::uint32_t> worker_of, std::size_t workers,
                                   const GroupLimits& limits = {});

}  // namespace switchyard
