#include "kernels/pack.h"

#include <string>

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

/** Where each expert's segment begins in its worker's plan, once the plans have their final sizes. */
std::vector<std::uint32_t> lay_segments(std::span<const std::uint32_t> counts,
                                        std::span<const std::uint32_t> worker_of, std::vector<GroupPlan>& plans) {
  std::vector<std::uint32_t> starts(counts.size());
  std::vector<std::uint32_t> entries(plans.size());
  for (std::uint32_t expert = 0; expert < counts.size(); ++expert) {
    if (counts[expert] == 0) continue;
    const std::uint32_t worker = worker_of[expert];
    starts[expert] = entries[worker];
    entries[worker] += counts[expert];
    plans[worker].segments.push_back(expert);
    plans[worker].segments.push_back(counts[expert]);
  }
  for (std::size_t worker = 0; worker < plans.size(); ++worker) {
    plans[worker].row_indices.resize(entries[worker]);
    plans[worker].slots.resize(entries[worker]);
    plans[worker].weights.resize(entries[worker]);
  }
  return starts;
}

}  // namespace

std::vector<GroupPlan> plan_groups(std::span<const std::uint32_t> experts, std::span<const float> weights,
                                   std::size_t top_k, std::span<const std::uint32_t> worker_of, std::size_t workers) {
  check_choices(experts, weights, top_k, worker_of, workers);
  std::vector<std::uint32_t> counts(worker_of.size());
  for (const std::uint32_t expert : experts) ++counts[expert];

  std::vector<GroupPlan> plans(workers);
  for (std::uint32_t worker = 0; worker < workers; ++worker) plans[worker].worker = worker;
  std::vector<std::uint32_t> next = lay_segments(counts, worker_of, plans);
  // Tokens come in order, so a row is new to a worker unless the worker's last row is of the same token.
  std::vector<std::uint32_t> last_token(workers, absent);
  for (std::uint32_t slot = 0; slot < experts.size(); ++slot) {
    const auto token = static_cast<std::uint32_t>(slot / top_k);
    const std::uint32_t expert = experts[slot];
    GroupPlan& plan = plans[worker_of[expert]];
    if (last_token[plan.worker] != token) {
      last_token[plan.worker] = token;
      plan.tokens.push_back(token);
    }
    const std::uint32_t entry = next[expert]++;
    plan.row_indices[entry] = static_cast<std::uint32_t>(plan.tokens.size() - 1);
    plan.slots[entry] = slot;
    plan.weights[entry] = weights[slot];
  }
  std::erase_if(plans, [](const GroupPlan& plan) { return plan.tokens.empty(); });
  return plans;
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
