#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/** Result rows of one worker, [targets.size(), hidden] BF16, and what each is for. */
struct CombinePart {
  const std::uint16_t* rows;
  std::span<const std::uint32_t> targets;
};

/**
 * For every output row, the rows to sum, in order: entries [offsets[t], offsets[t + 1]).
 * It points into the parts, which must outlive it.
 */
struct CombinePlan {
  std::vector<std::uint32_t> offsets;
  std::vector<const std::uint16_t*> rows;
  /** One per entry. */
  std::vector<float> weights;

  std::size_t row_count() const { return offsets.size() - 1; }
};

/**
 * Targets are slots (token * top_k + position); a token's rows are summed in the order of position.
 * `weights` is [row_count, top_k] or empty: every weight is 1.
 * Throws DATA_LOSS if a slot is missing or given twice, INVALID_ARGUMENT if one is out of range.
 */
CombinePlan plan_combine_exact(std::span<const CombinePart> parts, std::size_t row_count, std::size_t top_k,
                               std::size_t hidden, std::span<const float> weights);

/**
 * Targets are tokens; a token's rows are summed in the order of parts.
 * Throws DATA_LOSS if a token has no row, or two of one part; INVALID_ARGUMENT if a token is out of range.
 */
CombinePlan plan_combine_partial(std::span<const CombinePart> parts, std::size_t row_count, std::size_t hidden);

/**
 * The worker's side of `partial`: row i of [row_indices.size(), hidden] `rows` goes, times weights[i], to output row
 * row_indices[i], in the order of i. Throws INVALID_ARGUMENT for an index out of range and for unequal sizes,
 * DATA_LOSS for an output row that nothing goes to.
 */
CombinePlan plan_reduce(const std::uint16_t* rows, std::span<const std::uint32_t> row_indices,
                        std::span<const float> weights, std::size_t output_rows, std::size_t hidden);

/**
 * output[t] = residual[t] + sum over the plan's entries of weight * row, for t in [first, first + count): a float32
 * sum from the first entry on, then the residual, then one rounding to BF16. `residual` ([rows, hidden]) may be null,
 * and may be `output` itself. Returns the number of output rows that hold NaN or infinity.
 */
std::size_t combine_rows(const CombinePlan& plan, std::size_t first, std::size_t count, std::size_t hidden,
                         const std::uint16_t* residual, std::uint16_t* output);

}  // namespace switchyard
