#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/gate.h"

namespace switchyard {

/**
 * Logits of one row become scores, in float32. The `padding` floats after them are scratch; experts + padding is a
 * multiple of 8.
 */
void score_logits(float* logits, std::size_t experts, std::size_t padding, RoutingSpec::Score score);

/** Chooses experts from the scores of a row, by the rules of a RoutingSpec. One thread uses one of these. */
class Chooser {
 public:
  /** `selection_bias`: [experts], all that is added to scores for choosing. */
  Chooser(const RoutingSpec& routing, std::vector<float> selection_bias);

  /** Writes top_k experts, best first, and their weights. Values that are NaN come last. */
  void choose(const float* scores, std::uint32_t* experts, float* weights);

 private:
  void mask_groups();
  float group_score(std::span<const float> members) const;

  const RoutingSpec& routing_;
  std::vector<float> bias_;
  std::vector<float> selection_;
  std::vector<float> group_scores_;
  std::vector<std::uint64_t> best_experts_;
  std::vector<std::uint64_t> best_groups_;
  std::vector<bool> group_chosen_;
};

}  // namespace switchyard
