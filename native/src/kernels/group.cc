#include "kernels/group.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/error.h"

namespace switchyard {
namespace {

void check_choices(std::span<const std::uint32_t> experts, std::span<const float> weights, std::size_t top_k,
                   std::span<const std::uint32_t> worker_of, std::size_t workers) {
  if (top_k == 0 || experts.size() % top_k != 0) {
    throw_invalid("topK", top_k, "a divisor of the number of experts given, " + std::to_string(experts.size()));
  }
  if (!weights.empty() && weights.size() != experts.size()) {
    throw_invalid("weights.length", weights.size(), "0 or " + std::to_string(experts.size()));
  }
  for (const std::uint32_t worker : worker_of) {
    if (worker >= workers) throw_invalid("workerOf", worker, "below " + std::to_string(workers));
  }
  for (const std::uint32_t expert : experts) {
    if (expert >= worker_of.size()) throw_invalid("experts", expert, "below " + std::to_string(worker_of.size()));
  }
}

/** The slots of all workers, side by side; a worker's own ascend. */
struct SlotsByWorker {
  std::vector<std::uint32_t> slots;
  /** Those of worker w begin at offsets[w] and end at offsets[w + 1]. */
  std::vector<std::uint32_t> offsets;

  std::span<const std::uint32_t> of(std::size_t worker) const {
    return std::span(slots).subspan(offsets[worker], offsets[worker + 1] - offsets[worker]);
  }
};

SlotsByWorker sort_by_worker(std::span<const std::uint32_t> experts, std::span<const std::uint32_t> worker_of,
                             std::size_t workers) {
  SlotsByWorker sorted{std::vector<std::uint32_t>(experts.size()), std::vector<std::uint32_t>(workers + 1)};
  for (const std::uint32_t expert : experts) ++sorted.offsets[worker_of[expert] + 1];
  for (std::size_t w = 0; w < workers; ++w) sorted.offsets[w + 1] += sorted.offsets[w];
  std::vector<std::uint32_t> next(sorted.offsets.begin(), sorted.offsets.end() - 1);
  for (std::uint32_t slot = 0; slot < experts.size(); ++slot) sorted.slots[next[worker_of[experts[slot]]]++] = slot;
  return sorted;
}

/** Makes plans out of a worker's slots. */
class Grouping {
 public:
  Grouping(std::span<const std::uint32_t> experts, std::span<const float> weights, std::size_t top_k,
           std::size_t expert_count, const GroupLimits& limits)
      : experts_(experts),
        weights_(weights),
        top_k_(static_cast<std::uint32_t>(top_k)),
        inverse_(1.0 / static_cast<double>(top_k)),
        limits_(limits),
        next_(expert_count) {}

  /** How many of the slots, which begin with a token's first, go into one plan: whole tokens. */
  std::size_t fitting(std::uint32_t worker, std::span<const std::uint32_t> slots) const {
    const std::size_t rows_most = std::min(slots.size(), experts_.size() / top_k_);
    if (within(worker, rows_most, slots.size())) return slots.size();
    std::size_t taken = 0;
    for (std::size_t rows = 1; taken < slots.size(); ++rows) {
      const std::uint32_t end = end_of_token(slots[taken]);
      std::size_t next = taken + 1;
      while (next < slots.size() && slots[next] < end) ++next;
      if (!within(worker, rows, next)) {
        if (taken > 0) break;
        throw_invalid("limits of worker " + std::to_string(worker),
                      "too low for token " + std::to_string(token_of(slots[0])),
                      "a row and " + std::to_string(next) + " row indices at least");
      }
      taken = next;
    }
    return taken;
  }

  GroupPlan plan(std::uint32_t worker, std::span<const std::uint32_t> slots) {
    GroupPlan plan;
    plan.worker = worker;
    count(plan, slots);
    place_segments(plan);
    place_slots(plan, slots);
    for (const std::uint32_t expert : used_) next_[expert] = 0;
    return plan;
  }

 private:
  std::uint32_t end_of_token(std::uint32_t slot) const { return (token_of(slot) + 1) * top_k_; }

  bool within(std::uint32_t worker, std::size_t row_count, std::size_t entry_count) const {
    const auto rows = static_cast<double>(row_count);
    const auto entries = static_cast<double>(entry_count);
    const auto below = [&](std::span<const double> max, double value) { return max.empty() || value <= max[worker]; };
    return below(limits_.rows_max, rows) && below(limits_.entries_max, entries) &&
           below(limits_.cost_max, rows * limits_.row_cost + entries * limits_.entry_cost);
  }

  std::uint32_t token_of(std::uint32_t slot) const { return static_cast<std::uint32_t>((slot + 0.5) * inverse_); }

  /** Finds the plan's tokens, the row of every slot, and how many slots each expert has. */
  void count(GroupPlan& plan, std::span<const std::uint32_t> slots) {
    used_.clear();
    rows_.resize(slots.size());
    plan.tokens.resize(std::min(slots.size(), experts_.size() / top_k_));
    const std::uint32_t* const experts = experts_.data();
    std::uint32_t* const next = next_.data();
    std::uint32_t* const rows = rows_.data();
    std::uint32_t* const tokens = plan.tokens.data();
    std::uint32_t row = 0;
    tokens[0] = token_of(slots[0]);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::uint32_t token = token_of(slots[i]);
      row += token != tokens[row];
      tokens[row] = token;
      rows[i] = row;
      const std::uint32_t expert = experts[slots[i]];
      if (next[expert]++ == 0) used_.push_back(expert);
    }
    plan.tokens.resize(row + std::size_t{1});
  }

  /** Turns the experts' counts into segments, and into where each begins. */
  void place_segments(GroupPlan& plan) {
    std::ranges::sort(used_);
    std::uint32_t start = 0;
    for (const std::uint32_t expert : used_) {
      const std::uint32_t slot_count = std::exchange(next_[expert], start);
      plan.segments.push_back(expert);
      plan.segments.push_back(slot_count);
      start += slot_count;
    }
  }

  /** Puts every slot, with its row and its weight, where its expert is. */
  void place_slots(GroupPlan& plan, std::span<const std::uint32_t> slots) {
    plan.slots.resize(slots.size());
    plan.row_indices.resize(slots.size());
    const std::uint32_t* const experts = experts_.data();
    std::uint32_t* const next = next_.data();
    std::uint32_t* const placed = plan.slots.data();
    std::uint32_t* const row_indices = plan.row_indices.data();
    for (std::size_t i = 0; i < slots.size(); ++i) {
      const std::uint32_t entry = next[experts[slots[i]]]++;
      placed[entry] = slots[i];
      row_indices[entry] = rows_[i];
    }
    if (weights_.empty()) return;
    plan.weights.resize(slots.size());
    for (std::size_t i = 0; i < slots.size(); ++i) plan.weights[i] = weights_[placed[i]];
  }

  const std::span<const std::uint32_t> experts_;
  const std::span<const float> weights_;
  const std::uint32_t top_k_;
  /** Of top_k; half a slot more keeps what it rounds away from mattering. */
  const double inverse_;
  const GroupLimits& limits_;
  /** Of every expert, what comes next of it; zeros between plans. */
  std::vector<std::uint32_t> next_;
  /** The experts of a plan. */
  std::vector<std::uint32_t> used_;
  /** The row of each slot of a plan. */
  std::vector<std::uint32_t> rows_;
};

}  // namespace

std::vector<GroupPlan> plan_groups(std::span<const std::uint32_t> experts, std::span<const float> weights,
                                   std::size_t top_k, std::span<const std::uint32_t> worker_of, std::size_t workers,
                                   const GroupLimits& limits) {
  check_choices(experts, weights, top_k, worker_of, workers);
  const SlotsByWorker sorted = sort_by_worker(experts, worker_of, workers);
  Grouping grouping(experts, weights, top_k, worker_of.size(), limits);
  std::vector<GroupPlan> plans;
  for (std::uint32_t worker = 0; worker < workers; ++worker) {
    std::span<const std::uint32_t> left = sorted.of(worker);
    while (!left.empty()) {
      const std::size_t taken = grouping.fitting(worker, left);
      plans.push_back(grouping.plan(worker, left.first(taken)));
      left = left.subspan(taken);
    }
  }
  return plans;
}

}  // namespace switchyard
