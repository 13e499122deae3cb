#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <limits>
#include <vector>

#include "kernels/split.h"

namespace switchyard {

/** The worker of rows whose experts have no copy. */
constexpr std::uint32_t no_worker = std::numeric_limits<std::uint32_t>::max();

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

/** What the gate chose for the tokens of a chunk. */
struct Choices {
  /** [rows, top_k] */
  std::span<const std::uint32_t> experts;
  /** One per choice; empty: plans have none. */
  std::span<const float> weights;
  std::size_t top_k;
};

/** Where rows may go. */
struct GroupTargets {
  ExpertCopies copies;
  std::size_t workers;
  WorkerPace pace;
  GroupLimits limits = {};
};

/**
 * Groups choices by a worker that holds the expert: as many plans for each worker that gets rows as the limits ask, by worker
 * and then by token in ascending order; the last is what no worker holds, if there is such. All of a token's experts at one
 * worker are in one plan. Rows of replicated experts are split as split_rows says, and of a token go where others of it go if they can.
 * Throws INVALID_ARGUMENT for copies that make no sense, an expert without a place in them, or a token that alone is beyond a limit.
 */
std::vector<GroupPlan> plan_groups(const Choices& choices, const GroupTargets& targets);

/** As plan_groups, of some slots, which ascend. */
std::vector<GroupPlan> plan_groups(const Choices& choices, const GroupTargets& targets,
                                   std::span<const std::uint32_t> slots);

}  // namespace switchyard
