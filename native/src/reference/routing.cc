#include "reference/routing.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

namespace switchyard {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

std::vector<double> settle(std::span<const double> logits) {
  constexpr double largest = std::numeric_limits<float>::max();
  std::vector<double> settled(logits.begin(), logits.end());
  for (double& value : settled) {
    if (std::isnan(value)) return std::vector<double>(logits.size(), 0.0);
    value = std::clamp(value, -largest, largest);
  }
  return settled;
}

/** Logarithms of the scores, because those underflow. */
std::vector<double> log_scores_of(const std::vector<double>& logits, RoutingSpec::Score score) {
  std::vector<double> logs(logits);
  if (score == RoutingSpec::Score::sigmoid) {
    for (double& value : logs) value = std::min(value, 0.0) - std::log1p(std::exp(-std::abs(value)));
    return logs;
  }
  if (score == RoutingSpec::Score::sqrt_softplus) {
    for (double& value : logs) {
      // ln(softplus(x)), which for small x is x itself.
      value = 0.5 * (value < -30 ? value : std::log(std::max(value, 0.0) + std::log1p(std::exp(-std::abs(value)))));
    }
    return logs;
  }
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double value : logits) sum += std::exp(value - largest);
  for (double& value : logs) value -= largest + std::log(sum);
  return logs;
}

/** What a row's experts are chosen by. */
struct Candidates {
  std::vector<double> logits;
  std::vector<double> log_scores;
  /** Selection scores; -infinity or 0 in masked groups. */
  std::vector<double> selection;
  std::vector<bool> masked;
  /** Empty: none. */
  std::span<const float> bias;

  double bias_of(size_t expert) const { return bias.empty() ? 0 : bias[expert]; }
  bool biased() const { return std::any_of(bias.begin(), bias.end(), [](float value) { return value != 0; }); }
  /** Without a bias logits decide; with one, selection scores, and logits between equal ones. */
  std::pair<double, double> rank(size_t expert) const {
    if (biased()) return {selection[expert], logits[expert]};
    return {masked[expert] ? -infinity : logits[expert], 0};
  }
};

/** Indices of the `count` largest values, best first; ties go to the lower index. */
template <typename Value>
std::vector<uint32_t> largest_indices(const std::vector<Value>& values, size_t count) {
  std::vector<uint32_t> indices(values.size());
  std::iota(indices.begin(), indices.end(), 0);
  std::stable_sort(indices.begin(), indices.end(), [&](uint32_t a, uint32_t b) { return values[a] > values[b]; });
  indices.resize(count);
  return indices;
}

/** A group's score; without a bias its logarithm. */
double score_group(const Candidates& candidates, size_t first, size_t size, RoutingSpec::GroupScore score) {
  const std::vector<double>& values = candidates.biased() ? candidates.selection : candidates.log_scores;
  std::vector<double> members(values.begin() + first, values.begin() + first + size);
  std::sort(members.begin(), members.end(), std::greater<>());
  if (score == RoutingSpec::GroupScore::max || size == 1) return members[0];
  if (candidates.biased()) return members[0] + members[1];
  return members[0] + std::log1p(std::exp(members[1] - members[0]));
}

std::vector<double> score_groups(const Candidates& candidates, const RoutingSpec& routing) {
  const size_t size = candidates.logits.size() / routing.groups;
  std::vector<double> scores;
  for (size_t group = 0; group < routing.groups; ++group) scores.push_back(score_group(candidates, group * size, size, routing.group_score));
  return scores;
}

std::vector<bool> choose_groups(const Candidates& candidates, const RoutingSpec& routing) {
  const size_t size = candidates.logits.size() / routing.groups;
  const std::vector<double> scores = score_groups(candidates, routing);
  std::vector<std::pair<double, double>> groups;
  for (size_t group = 0; group < routing.groups; ++group) {
    const auto begin = candidates.logits.begin() + group * size;
    groups.emplace_back(scores[group], *std::max_element(begin, begin + size));
  }
  std::vector<bool> chosen(routing.groups);
  for (const uint32_t group : largest_indices(groups, routing.groups_chosen)) chosen[group] = true;
  return chosen;
}

/** The candidates where only these groups take part. */
Candidates within(Candidates candidates, const RoutingSpec& routing, const std::vector<bool>& groups) {
  const size_t size = candidates.logits.size() / routing.groups;
  const bool zero = candidates.biased() && routing.masked == RoutingSpec::Masked::zero;
  for (size_t expert = 0; expert < candidates.logits.size(); ++expert) {
    if (groups[expert / size]) continue;
    candidates.masked[expert] = true;
    candidates.selection[expert] = zero ? 0 : -infinity;
  }
  return candidates;
}

/** By how much what was not chosen is better than what was: in selection scores, and in logits. */
using Regret = std::pair<double, double>;

Regret larger(const Regret& a, const Regret& b) { return {std::max(a.first, b.first), std::max(a.second, b.second)}; }

/** Of a choice of experts. */
Regret regret_of(const Candidates& candidates, std::span<const uint32_t> used) {
  double worst_used = infinity;
  for (const uint32_t expert : used) worst_used = std::min(worst_used, candidates.selection[expert]);
  double best_unused = -infinity;
  double logit_regret = -infinity;
  for (size_t expert = 0; expert < candidates.logits.size(); ++expert) {
    if (std::find(used.begin(), used.end(), expert) != used.end()) continue;
    best_unused = std::max(best_unused, candidates.selection[expert]);
    for (const uint32_t other : used) {
      if (candidates.masked[expert] || candidates.masked[other]) continue;
      if (candidates.bias_of(expert) != candidates.bias_of(other)) continue;
      logit_regret = std::max(logit_regret, candidates.logits[expert] - candidates.logits[other]);
    }
  }
  if (best_unused == -infinity) return {worst_used == -infinity ? 0 : -infinity, logit_regret};
  return {best_unused - worst_used, logit_regret};
}

/** Of a choice of groups by these scores: for each score that they are the sum of. Without a bias they are logarithms, which differ as logits do. */
Regret regret_of_groups(const std::vector<double>& scores, const std::vector<bool>& chosen, bool biased, size_t summed) {
  double worst_chosen = infinity, best_other = -infinity;
  for (size_t group = 0; group < scores.size(); ++group) {
    if (chosen[group]) worst_chosen = std::min(worst_chosen, scores[group]);
    else best_other = std::max(best_other, scores[group]);
  }
  if (biased) return {(best_other - worst_chosen) / static_cast<double>(summed), -infinity};
  return {(std::exp(best_other) - std::exp(worst_chosen)) / static_cast<double>(summed), best_other - worst_chosen};
}

/** Of experts that were chosen within the best groups, or within groups of which one is another. `all`: the candidates of all groups. */
Regret regret_of_all(const Candidates& all, const RoutingSpec& routing, std::vector<bool> groups, std::span<const uint32_t> used) {
  Regret least = regret_of(within(all, routing, groups), used);
  if (least.first <= 0 && least.second <= 0) return least;
  const std::vector<double> scores = score_groups(all, routing);
  const bool sums = routing.group_score == RoutingSpec::GroupScore::top2 && routing.groups < all.logits.size();
  const std::vector<bool> best = groups;
  for (size_t out = 0; out < best.size(); ++out) {
    for (size_t in = 0; in < best.size(); ++in) {
      if (!best[out] || best[in]) continue;
      groups[out] = false;
      groups[in] = true;
      const Regret of_groups = regret_of_groups(scores, groups, all.biased(), sums ? 2 : 1);
      least = std::min(least, larger(of_groups, regret_of(within(all, routing, groups), used)));
      groups = best;
    }
  }
  return least;
}

/** Each chosen expert's part in a softmax over those that are near it, less those chosen before. */
std::vector<double> mixed_weights(const std::vector<double>& logits, const RoutingSpec& routing, std::span<const uint32_t> used) {
  std::vector<double> weights;
  std::vector<bool> gone(logits.size());
  for (const uint32_t expert : used) {
    const double best = logits[expert];
    double sum = 0;
    for (size_t e = 0; e < logits.size(); ++e) {
      const bool far = (best - logits[e]) / std::max(std::abs(logits[e]), best) > routing.mixer_reach;
      if (!gone[e] && !far) sum += std::exp(logits[e] - best);
    }
    weights.push_back(routing.scale / sum);
    gone[expert] = true;
  }
  return weights;
}

std::vector<double> weights_of(const Candidates& candidates, const RoutingSpec& routing,
                               std::span<const uint32_t> used) {
  if (routing.score == RoutingSpec::Score::sparse_mixer) return mixed_weights(candidates.logits, routing, used);
  double largest = -infinity;
  for (const uint32_t expert : used) largest = std::max(largest, candidates.log_scores[expert]);
  double sum = 0;
  for (const uint32_t expert : used) sum += std::exp(routing.norm_power * (candidates.log_scores[expert] - largest));
  const double divisor = routing.renormalise ? largest + std::log(sum) / routing.norm_power : 0;
  std::vector<double> weights;
  for (const uint32_t expert : used) weights.push_back(std::exp(candidates.log_scores[expert] - divisor) * routing.scale);
  return weights;
}

}  // namespace

ReferenceChoice choose_experts(std::span<const double> logits, std::span<const float> selection_bias,
                               const RoutingSpec& routing, std::span<const uint32_t> given) {
  Candidates candidates;
  candidates.logits = settle(logits);
  if (const double cap = routing.logit_cap; cap > 0) {
    for (double& value : candidates.logits) value = cap * std::tanh(value / cap);
  }
  candidates.log_scores = log_scores_of(candidates.logits, routing.score);
  candidates.masked.resize(logits.size());
  candidates.bias = selection_bias;
  for (size_t expert = 0; expert < logits.size(); ++expert) {
    candidates.selection.push_back(std::exp(candidates.log_scores[expert]) + candidates.bias_of(expert));
  }
  const std::vector<bool> groups = choose_groups(candidates, routing);
  const Candidates chosen = within(candidates, routing, groups);
  std::vector<std::pair<double, double>> ranks;
  for (size_t expert = 0; expert < logits.size(); ++expert) ranks.push_back(chosen.rank(expert));

  ReferenceChoice choice;
  choice.experts = largest_indices(ranks, routing.top_k);
  const std::span<const uint32_t> used = given.empty() ? std::span<const uint32_t>(choice.experts) : given;
  choice.weights = weights_of(candidates, routing, used);
  std::tie(choice.regret, choice.logit_regret) = regret_of_all(candidates, routing, groups, used);
  return choice;
}

}  // namespace switchyard
