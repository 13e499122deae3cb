#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

/** The copies of a layer's experts: those of expert e are workers[offsets[e]] to workers[offsets[e + 1] - 1]. */
struct ExpertCopies {
  /** [experts + 1], from 0 to the number of copies. */
  std::span<const std::uint32_t> offsets;
  std::span<const std::uint32_t> workers;

  std::size_t experts() const { return offsets.size() - 1; }
  std::size_t count(std::size_t expert) const { return offsets[expert + 1] - offsets[expert]; }
};

/** How busy workers are and how fast, [workers]; empty: all of them idle and equally fast. */
struct WorkerPace {
  /** Until a worker has done what it has. */
  std::span<const double> seconds_queued;
  /** Above 0. */
  std::span<const double> seconds_per_row;
};

/** Throws INVALID_ARGUMENT unless offsets ascend from 0 to the number of copies, and these are below `workers` and ascend. */
void check_copies(const ExpertCopies& copies, std::size_t workers);

/** Whether an expert has more than one copy. */
bool has_replicas(const ExpertCopies& copies);

/**
 * Splits the rows of every expert over its copies so that the worker that ends last ends as early as it can, then the next one, and so
 * on, each within a row. Deterministic. `rows`: [experts]; those of experts without a copy are nobody's. Returns the rows
 * of each copy.
 */
std::vector<std::uint32_t> split_rows(std::span<const std::uint32_t> rows, const ExpertCopies& copies, std::size_t workers,
                                      const WorkerPace& pace);

}  // namespace switchyard
