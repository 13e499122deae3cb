#include "kernels/group.h"

#include <algorithm>
#include <string>
#include <utility>

#include "runtime/error.h"

namespace switchyard {
namespace {

void check(const Choices& choices, const GroupTargets& targets) {
  const auto& [experts, weights, top_k] = choices;
  if (top_k == 0 || experts.size() % top_k != 0) {
    throw_invalid("topK", top_k, "a divisor of the number of experts given, " + std::to_string(experts.size()));
  }
  if (!weights.empty() && weights.size() != experts.size()) {
    throw_invalid("weights.length", weights.size(), "0 or " + std::to_string(experts.size()));
  }
  check_copies(targets.copies, targets.workers);
  const std::size_t placed = targets.copies.experts();
  for (const std::uint32_t expert : experts) {
    if (expert >= placed) throw_invalid("experts", expert, "below " + std::to_string(placed));
  }
}

/** Slots in ascending order: all of a chunk, or those of a list. */
struct SlotRange {
  /** Empty: slot i is i. */
  std::span<const std::uint32_t> listed;
  std::size_t count;

  std::uint32_t at(std::size_t i) const { return listed.empty() ? static_cast<std::uint32_t>(i) : listed[i]; }
};

/** The slots of all workers, side by side; a worker's own ascend. Behind the workers' are those that nobody holds. */
struct SlotsByWorker {
  std::vector<std::uint32_t> slots;
  /** Those of worker w begin at offsets[w] and end at offsets[w + 1]. */
  std::vector<std::uint32_t> offsets;

  std::span<const std::uint32_t> of(std::size_t worker) const {
    return std::span(slots).subspan(offsets[worker], offsets[worker + 1] - offsets[worker]);
  }
};

/** `worker_of(i)`: of slot i of the range, up to `workers`: nobody. */
template <typename WorkerOf>
SlotsByWorker sort_by_worker(const SlotRange& range, std::size_t workers, WorkerOf worker_of) {
  SlotsByWorker sorted{std::vector<std::uint32_t>(range.count), std::vector<std::uint32_t>(workers + 2)};
  for (std::size_t i = 0; i < range.count; ++i) ++sorted.offsets[worker_of(i) + 1];
  for (std::size_t w = 0; w <= workers; ++w) sorted.offsets[w + 1] += sorted.offsets[w];
  std::vector<std::uint32_t> next(sorted.offsets.begin(), sorted.offsets.end() - 1);
  for (std::size_t i = 0; i < range.count; ++i) sorted.slots[next[worker_of(i)]++] = range.at(i);
  return sorted;
}

/** Of each expert the worker of its first copy; `workers`: it has none. */
std::vector<std::uint32_t> first_workers(const GroupTargets& targets) {
  const ExpertCopies& copies = targets.copies;
  std::vector<std::uint32_t> first(copies.experts(), static_cast<std::uint32_t>(targets.workers));
  for (std::size_t expert = 0; expert < first.size(); ++expert) {
    if (copies.count(expert) > 0) first[expert] = copies.workers[copies.offsets[expert]];
  }
  return first;
}

/**
 * The worker of every slot of the range. Rows of an expert with several copies go, as far as its copies have room in the split, where
 * their token goes anyway, since a token travels to a worker once; otherwise where most room is left.
 */
std::vector<std::uint32_t> split_slots(const Choices& choices, const GroupTargets& targets, const SlotRange& range,
                                       std::span<const std::uint32_t> first) {
  const ExpertCopies& copies = targets.copies;
  std::vector<std::uint32_t> counts(copies.experts());
  std::vector<std::uint32_t> workers(range.count, no_worker);
  std::vector<std::uint32_t> shared;
  for (std::size_t i = 0; i < range.count; ++i) {
    const std::uint32_t expert = choices.experts[range.at(i)];
    ++counts[expert];
    if (copies.count(expert) <= 1) {
      workers[i] = first[expert];
    } else {
      shared.push_back(static_cast<std::uint32_t>(i));
    }
  }
  std::vector<std::uint32_t> room = split_rows(counts, copies, targets.workers, targets.pace);
  for (const std::uint32_t i : shared) {
    const std::uint32_t slot = range.at(i);
    const std::size_t token = slot / choices.top_k;
    const auto goes_to = [&](std::uint32_t worker) {
      for (std::size_t j = i; j > 0 && range.at(j - 1) / choices.top_k == token; --j) {
        if (workers[j - 1] == worker) return true;
      }
      for (std::size_t j = i + 1; j < range.count && range.at(j) / choices.top_k == token; ++j) {
        if (workers[j] == worker) return true;
      }
      return false;
    };
    const std::uint32_t expert = choices.experts[slot];
    std::uint32_t best = no_worker;
    for (std::uint32_t copy = copies.offsets[expert]; copy < copies.offsets[expert + 1]; ++copy) {
      if (room[copy] == 0) continue;
      if (goes_to(copies.workers[copy])) {
        best = copy;
        break;
      }
      if (best == no_worker || room[copy] > room[best]) best = copy;
    }
    --room[best];
    workers[i] = copies.workers[best];
  }
  return workers;
}

SlotsByWorker sort_slots(const Choices& choices, const GroupTargets& targets, const SlotRange& range) {
  const std::vector<std::uint32_t> first = first_workers(targets);
  if (!has_replicas(targets.copies)) {
    return sort_by_worker(range, targets.workers, [&](std::size_t i) { return first[choices.experts[range.at(i)]]; });
  }
  const std::vector<std::uint32_t> workers = split_slots(choices, targets, range, first);
  return sort_by_worker(range, targets.workers, [&](std::size_t i) { return workers[i]; });
}

/** Makes plans out of a worker's slots. */
class Grouping {
 public:
  Grouping(const Choices& choices, const GroupTargets& targets)
      : experts_(choices.experts),
        weights_(choices.weights),
        top_k_(static_cast<std::uint32_t>(choices.top_k)),
        inverse_(1.0 / static_cast<double>(choices.top_k)),
        limits_(targets.limits),
        next_(targets.copies.experts()) {}

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

std::vector<GroupPlan> plan_range(const Choices& choices, const GroupTargets& targets, const SlotRange& range) {
  const SlotsByWorker sorted = sort_slots(choices, targets, range);
  Grouping grouping(choices, targets);
  std::vector<GroupPlan> plans;
  for (std::uint32_t worker = 0; worker < targets.workers; ++worker) {
    std::span<const std::uint32_t> left = sorted.of(worker);
    while (!left.empty()) {
      const std::size_t taken = grouping.fitting(worker, left);
      plans.push_back(grouping.plan(worker, left.first(taken)));
      left = left.subspan(taken);
    }
  }
  const std::span<const std::uint32_t> unheld = sorted.of(targets.workers);
  if (!unheld.empty()) plans.push_back(grouping.plan(no_worker, unheld));
  return plans;
}

}  // namespace

std::vector<GroupPlan> plan_groups(const Choices& choices, const GroupTargets& targets) {
  check(choices, targets);
  return plan_range(choices, targets, {{}, choices.experts.size()});
}

std::vector<GroupPlan> plan_groups(const Choices& choices, const GroupTargets& targets,
                                   std::span<const std::uint32_t> slots) {
  check(choices, targets);
  return plan_range(choices, targets, {slots, slots.size()});
}

}  // namespace switchyard
