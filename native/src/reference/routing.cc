#include "reference/routing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

namespace switchyard {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<double> scores_of(std::span<const double> logits, RoutingSpec::Score score) {
  std::vector<double> scores(logits.begin(), logits.end());
  if (score == RoutingSpec::Score::sigmoid) {
    for (double& value : scores) value = 1 / (1 + std::exp(-value));
    return scores;
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double& value : scores) sum += value = std::exp(value - largest);
  for (double& value : scores) value /= sum;
  return scores;
}

/** Indices of the `count` largest values, best first; ties go to the lower index. */
std::vector<uint32_t> largest_indices(std::span<const double> values, size_t count) {
  std::vector<uint32_t> indices(values.size());
  std::iota(indices.begin(), indices.end(), 0);
  std::stable_sort(indices.begin(), indices.end(), [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
  indices.resize(count);
  return indices;
}

void mask_groups(std::vector<double>& selection, const RoutingSpec& routing) {
  const size_t size = selection.size() / routing.groups;
  std::vector<double> group_scores(routing.groups);
  for (size_t group = 0; group < routing.groups; ++group) {
    std::vector<double> members(selection.begin() + group * size, selection.begin() + (group + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    const bool both = routing.group_score == RoutingSpec::GroupScore::top2 && size > 1;
    group_scores[group] = both ? members[0] + members[1] : members[0];
  }
  std::vector<bool> chosen(routing.groups);
  for (const uint32_t group : largest_indices(group_scores, routing.groups_chosen)) chosen[group] = true;
  const double masked = routing.masked == RoutingSpec::Masked::zero ? 0 : -infinity;
  for (size_t expert = 0; expert < selection.size(); ++expert) {
    if (!chosen[expert / size]) selection[expert] = masked;
  }
}

double regret_of(std::span<const double> selection, std::span<const uint32_t> used) {
  double worst_used = infinity;
  for (const uint32_t expert : used) worst_used = std::min(worst_used, selection[expert]);
  double best_unused = -infinity;
  for (size_t expert = 0; expert < selection.size(); ++expert) {
    if (std::find(used.begin(), used.end(), expert) == used.end()) {
      best_unused = std::max(best_unused, selection[expert]);
    }
  }
  if (best_unused == -infinity) return worst_used == -infinity ? 0 : -infinity;
  return best_unused - worst_used;
}

}  // namespace

ReferenceChoice choose_experts(std::span<const double> logits, std::span<const float> selection_bias,
                               const RoutingSpec& routing, std::span<const uint32_t> given) {
  const std::vector<double> scores = scores_of(logits, routing.score);
  std::vector<double> selection = scores;
  for (size_t expert = 0; expert < selection_bias.size(); ++expert) selection[expert] += selection_bias[expert];
  if (routing.groups > 1) mask_groups(selection, routing);

  ReferenceChoice choice;
  choice.experts = largest_indices(selection, routing.top_k);
  const std::span<const uint32_t> used = given.empty() ? std::span<const uint32_t>(choice.experts) : given;
  choice.regret = regret_of(selection, used);
  double sum = 0;
  for (const uint32_t expert : used) sum += scores[expert];
  for (const uint32_t expert : used) {
    choice.weights.push_back(scores[expert] / (routing.renormalise ? sum : 1) * routing.scale);
  }
  return choice;
}

}  // namespace switchyard
