#pragma once

#include "experts/backend.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/latent.h"
#include "experts/cpu/weights.h"

namespace switchyard::cpu {

/** An expert's matrices as two products. */
class CpuExpert final : public Expert {
 public:
  size_t bytes() const override { return first_.bytes() + second_.bytes(); }
  size_t hidden() const override { return hidden_; }
  size_t ffn() const override { return ffn_; }

  Activation activation() const { return activation_; }
  /** Of a panel of the first product. */
  Epilogue epilogue(size_t panel) const { return {first_bias_.data() + panel * panel_columns, glu_}; }
  /** [panels][64], added to the sums of the second product. */
  const float* second_bias() const { return second_bias_.data(); }
  /** Elements of the intermediate that one panel of the first product gives. */
  size_t panel_outputs() const { return panel_outputs_; }
  /** Columns of the first product's rows, and of the second's results. */
  size_t width() const { return width_; }
  /** What makes such rows of hidden ones, and the reverse; null: they are the same. */
  const Latent* latent() const { return latent_.get(); }
  /** up, or gate and up: a swiglu panel holds 32 columns of gate and beside them the same 32 of up. */
  const PackedWeights& first() const { return first_; }
  /** down */
  const PackedWeights& second() const { return second_; }

 private:
  CpuExpert(const ExpertSource& source, std::shared_ptr<const Latent> latent, bool packed);
  friend std::unique_ptr<CpuExpert> load_expert(const ExpertSource& source, Latents& latents);
  /** False if a code stands for NaN. */
  bool fill(const ExpertSource& source);

  Activation activation_;
  GluForm glu_;
  std::shared_ptr<const Latent> latent_;
  size_t width_;
  size_t hidden_;
  size_t ffn_;
  size_t panel_outputs_;
  PackedWeights first_;
  PackedWeights second_;
  /** In the order of the panels' columns; negative zero, which changes nothing, where there is none. */
  std::vector<float> first_bias_;
  std::vector<float> second_bias_;
};

/** Reads and packs the matrices: as codes, if they are stored so and kernels can widen them. Throws as ExpertBackend::load does. */
std::unique_ptr<CpuExpert> load_expert(const ExpertSource& source, Latents& latents);

}  // namespace switchyard::cpu
