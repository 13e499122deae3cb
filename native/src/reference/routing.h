#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/gate.h"

namespace switchyard {

struct ReferenceChoice {
  /** [top_k], best first; ties go to the lower expert. */
  std::vector<uint32_t> experts;
  /** [top_k], of the experts used: the given ones if there are any. */
  std::vector<double> weights;
  /**
   * The largest amount by which an unused expert's selection score exceeds a used one's; <= 0 if the choice agrees.
   * Used ones may come from groups of which one is not among the best: then by as much as its score, or a half of one that is a
   * sum of two, is exceeded. Infinite if there are no such groups, where others are masked with negative infinity.
   */
  double regret;
  /**
   * The same in logits, which tell where scores are all but equal: over pairs with the same selection bias and in groups
   * that are not masked. Minus infinity if there is no such pair.
   */
  double logit_regret;
};

/**
 * Routes one row from its logits [experts]. `selection_bias` and `given` may be empty. As the gate does, it takes a logit
 * beyond the range of floats for the largest float, and all logits for 0 if there is NaN among them.
 */
ReferenceChoice choose_experts(std::span<const double> logits, std::span<const float> selection_bias,
                               const RoutingSpec& routing, std::span<const uint32_t> given);

}  // namespace switchyard
