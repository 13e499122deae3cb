#pragma once

#include "experts/backend.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/latent.h"
#include "experts/cpu/weights.h"

namespace switchyard::cpu {

/** A product with one matrix, and what becomes of its sums. */
struct Stage {
  const PackedWeights& weights;
  /** [panels][columns of a panel] */
  const float* bias;
  /** Identity: sums are rounded as they are. */
  Activation activation;
  /** Of the result. */
  size_t columns;
};

/** An expert's matrices as products. */
class CpuExpert final : public Expert {
 public:
  size_t bytes() const override { return memory_.bytes(); }
  size_t hidden() const override { return hidden_; }
  size_t ffn() const override { return ffn_; }
  const GluForm& glu() const { return glu_; }
  /** Of all matrices that a row passes. */
  size_t elements() const { return (is_gated(activation_) ? 3 : 2) * width_ * ffn_ + (latent_ ? 2 * hidden_ * width_ : 0); }

  Activation activation() const { return activation_; }
  /** What is computed one after another, from hidden rows to results; as long as the expert lives. */
  std::vector<Stage> stages() const;

 private:
  CpuExpert(const PanelOrder& order, const ExpertSource& source, std::shared_ptr<const Latent> latent, bool packed);
  friend std::unique_ptr<CpuExpert> load_expert(const PanelOrder& order, const ExpertSource& source, Latents& latents);
  /** False if a code stands for NaN. */
  bool fill(const ExpertSource& source);

  Activation activation_;
  GluForm glu_;
  /** What makes rows of `width` of hidden ones, and the reverse; null: they are the same. */
  std::shared_ptr<const Latent> latent_;
  /** Columns of the first product's rows, and of the second's results. */
  size_t width_;
  size_t hidden_;
  size_t ffn_;
  /** Elements of the intermediate that one panel of the first product gives. */
  size_t panel_outputs_;
  /** up, or gate and up: the first half of a panel's columns is gate, the second the same columns of up. */
  PackedWeights first_;
  /** down */
  PackedWeights second_;
  /** Both lie in one, for a huge page that each would fill in part. */
  PackedMemory memory_;
  /** In the order of the panels' columns; negative zero, which changes nothing, where there is none. */
  std::vector<float> first_bias_;
  std::vector<float> second_bias_;
};

/** Reads and packs the matrices: as codes, if they are stored so and kernels can widen them. Throws as ExpertBackend::load does. */
std::unique_ptr<CpuExpert> load_expert(const PanelOrder& order, const ExpertSource& source, Latents& latents);

}  // namespace switchyard::cpu
