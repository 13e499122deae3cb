#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/gate.h"

namespace switchyard {

/** 1 / (1 + e^-logit), the same on every processor; of NaN as of 0. */
float sigmoid_of(float logit);

/**
 * Chooses experts from the logits of a row, by the rules of a RoutingSpec. Scores rise with logits but run into the ends
 * of float32, so what they leave equal the logits decide. One thread uses one of these.
 */
class Chooser {
 public:
  /** `selection_bias`: [experts], all that is added to scores for choosing. `padding`: see choose. */
  Chooser(const RoutingSpec& routing, std::vector<float> selection_bias, std::size_t padding);

  /**
   * Writes top_k experts, best first, and their weights, which are finite. `logits` is overwritten; `padding` floats
   * after its [experts] are scratch, and experts + padding is a multiple of 8.
   */
  void choose(float* logits, std::uint32_t* experts, float* weights);
  /** The same where `experts` are there: writes their weights. An expert may be there more than once. */
  void weigh_chosen(float* logits, const std::uint32_t* experts, float* weights);

 private:
  /** Orders like the selection score, then like the logit. */
  using Key = std::uint64_t;
  struct Ranked {
    Key key;
    std::uint32_t expert;
  };
  /** Compared from the first on. */
  using GroupScore = std::array<float, 3>;

  /** Settles and caps the logits, and fills the scores. */
  void score(float* logits);
  void cap(float* logits) const;
  void rank(const float* logits);
  void mask_groups(const float* logits);
  GroupScore score_group(const float* logits, std::size_t first) const;
  void take_best();
  void weigh(const float* logits, const std::uint32_t* experts, float* weights);
  void mix(const float* logits, const std::uint32_t* experts, float* weights);

  const RoutingSpec& routing_;
  std::vector<float> bias_;
  /** Whether any bias is not zero: without one, logits alone choose. */
  bool biased_;
  /** [experts + padding] */
  std::vector<float> scores_;
  std::vector<Key> keys_;
  std::vector<Ranked> best_;
  std::vector<GroupScore> group_scores_;
  std::vector<std::uint32_t> groups_;
};

}  // namespace switchyard
