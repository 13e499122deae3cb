#include "kernels/pack.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/streaming.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

constexpr std::uint32_t absent = 0xffffffffu;

void check_choices(std::span<const std::uint32_t> experts, std::span<const float> weights, std::size_t top_k,
                   std::span<const std::uint32_t> worker_of, std::size_t workers) {
  if (top_k == 0 || experts.size() % top_k != 0) {
    throw_invalid("topK", top_k, "a divisor of the number of experts given, " + std::to_string(experts.size()));
  }
  if (weights.size() != experts.size()) {
    throw_invalid("weights.length", weights.size(), std::to_string(experts.size()));
  }
  for (const std::uint32_t worker : worker_of) {
    if (worker >= workers) throw_invalid("workerOf", worker, "below " + std::to_string(workers));
  }
  for (const std::uint32_t expert : experts) {
    if (expert >= worker_of.size()) throw_invalid("experts", expert, "below " + std::to_string(worker_of.size()));
  }
}

/** The plan that each worker's tokens go to, and the next one when it is full. */
class Plans {
 public:
  Plans(std::size_t workers, std::size_t slots_usual, const GroupLimits& limits)
      : limits_(limits), slots_usual_(slots_usual), current_(workers, absent) {}

  /** Puts a token with so many row indices into a plan of the worker. */
  GroupPlan& add(std::uint32_t worker, std::uint32_t token, std::size_t entries) {
    std::uint32_t& current = current_[worker];
    if (current == absent || !within(plans_[current], entries)) {
      current = static_cast<std::uint32_t>(plans_.size());
      plans_.push_back({.worker = worker});
      plans_.back().slots.reserve(slots_usual_);
      if (!within(plans_[current], entries)) {
        throw_invalid("limits of worker " + std::to_string(worker), "too low for token " + std::to_string(token),
                      "a row and " + std::to_string(entries) + " row indices at least");
      }
    }
    plans_[current].tokens.push_back(token);
    return plans_[current];
  }

  GroupPlan& of(std::uint32_t worker) { return plans_[current_[worker]]; }

  /** All plans, those of each worker together. */
  std::vector<GroupPlan> take() {
    std::ranges::stable_sort(plans_, {}, &GroupPlan::worker);
    return std::move(plans_);
  }

 private:
  bool within(const GroupPlan& plan, std::size_t entries_more) const {
    const auto rows = static_cast<double>(plan.tokens.size() + 1);
    const auto entries = static_cast<double>(plan.slots.size() + entries_more);
    const double cost = rows * limits_.row_cost + entries * limits_.entry_cost;
    const auto below = [&](std::span<const double> max, double value) {
      return max.empty() || value <= max[plan.worker];
    };
    return below(limits_.rows_max, rows) && below(limits_.entries_max, entries) && below(limits_.cost_max, cost);
  }

  const GroupLimits& limits_;
  const std::size_t slots_usual_;
  std::vector<GroupPlan> plans_;
  std::vector<std::uint32_t> current_;
};

/** Brings slots from the order of tokens into that of segments. `next` has a zero for every expert, before and after. */
void sort_by_expert(GroupPlan& plan, std::span<const std::uint32_t> experts, std::span<const float> weights,
                    std::size_t top_k, std::vector<std::uint32_t>& next) {
  std::vector<std::uint32_t> used;
  for (const std::uint32_t slot : plan.slots) {
    if (next[experts[slot]]++ == 0) used.push_back(experts[slot]);
  }
  std::ranges::sort(used);
  std::uint32_t start = 0;
  for (const std::uint32_t expert : used) {
    const std::uint32_t count = std::exchange(next[expert], start);
    plan.segments.push_back(expert);
    plan.segments.push_back(count);
    start += count;
  }
  const std::vector<std::uint32_t> slots = std::exchange(plan.slots, std::vector<std::uint32_t>(start));
  plan.row_indices.resize(start);
  plan.weights.resize(start);
  std::uint32_t row = 0;
  for (const std::uint32_t slot : slots) {
    if (slot >= (plan.tokens[row] + std::size_t{1}) * top_k) ++row;
    const std::uint32_t entry = next[experts[slot]]++;
    plan.slots[entry] = slot;
    plan.row_indices[entry] = row;
    plan.weights[entry] = weights[slot];
  }
  for (const std::uint32_t expert : used) next[expert] = 0;
}

}  // namespace

std::vector<GroupPlan> plan_groups(std::span<const std::uint32_t> experts, std::span<const float> weights,
                                   std::size_t top_k, std::span<const std::uint32_t> worker_of, std::size_t workers,
                                   const GroupLimits& limits) {
  check_choices(experts, weights, top_k, worker_of, workers);
  Plans plans(workers, workers == 0 ? 0 : experts.size() / workers, limits);
  // Of the token, at each worker; zero once the token has its place there.
  std::vector<std::uint32_t> entries(workers);
  std::uint32_t token = 0;
  for (std::uint32_t slot = 0; slot < experts.size(); ++token) {
    for (const std::uint32_t expert : experts.subspan(slot, top_k)) ++entries[worker_of[expert]];
    for (const std::uint32_t end = slot + static_cast<std::uint32_t>(top_k); slot < end; ++slot) {
      const std::uint32_t worker = worker_of[experts[slot]];
      const std::uint32_t count = std::exchange(entries[worker], 0);
      GroupPlan& plan = count > 0 ? plans.add(worker, token, count) : plans.of(worker);
      plan.slots.push_back(slot);
    }
  }
  std::vector<GroupPlan> sorted = plans.take();
  std::vector<std::uint32_t> next(worker_of.size());
  for (GroupPlan& plan : sorted) sort_by_expert(plan, experts, weights, top_k, next);
  return sorted;
}

void pack_rows(const void* rows, std::size_t row_bytes, std::span<const std::uint32_t> indices, std::size_t first,
               std::size_t count, void* output) {
  const bool streaming = worth_streaming(indices.size() * row_bytes);
  for (std::size_t i = first; i < first + count; ++i) {
    auto* to = static_cast<std::byte*>(output) + i * row_bytes;
    const auto* from = static_cast<const std::byte*>(rows) + indices[i] * row_bytes;
    copy(to, from, row_bytes, streaming);
  }
}

}  // namespace switchyard
