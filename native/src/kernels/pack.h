#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/** One worker's share of a chunk; the fields are those of RowGroup in native/index.ts. */
struct GroupPlan {
  std::uint32_t worker;
  /** [expert, count] pairs in ascending expert order. */
  std::vector<std::uint32_t> segments;
  /** Segment after segment, tokens ascending: index into `tokens`. */
  std::vector<std::uint32_t> row_indices;
  /** One per row index: token * top_k + position. */
  std::vector<std::uint32_t> slots;
  /** One per row index. */
  std::vector<float> weights;
  /** One per row of the group, ascending. */
  std::vector<std::uint32_t> tokens;
};

/**
 * Groups [rows, top_k] choices by the worker that holds the expert: one plan per worker that gets rows, in
 * ascending order. `worker_of` maps an expert to a worker below `workers`.
 * Throws INVALID_ARGUMENT for an expert outside `worker_of`, or a worker outside `workers`.
 */
std::vector<GroupPlan> plan_groups(std::span<const std::uint32_t> experts, std::span<const float> weights,
                                   std::size_t top_k, std::span<const std::uint32_t> worker_of, std::size_t workers);

/**
 * The copying, by any range of packed rows: output row i = row indices[i] of `rows`, for i in [first, first + count).
 * `rows` and `output` have rows of `row_bytes`, side by side; `output` is for all of `indices`.
 */
void pack_rows(const void* rows, std::size_t row_bytes, std::span<const std::uint32_t> indices, std::size_t first,
               std::size_t count, void* output);

}  // namespace switchyard
