#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "experts/activation.h"
#include "kernels/gate.h"
#include "model/tensor.h"
#include "runtime/pool.h"

namespace switchyard {

/** Linear maps around an expert's matrices, which then have `latent` in place of hidden. */
struct ReferenceLatent {
  /** [latent, hidden] */
  TensorSource input;
  std::optional<TensorSource> input_bias;
  /** [hidden, latent] */
  TensorSource output;
};

struct ReferenceExpert {
  Activation activation = Activation::swiglu;
  /** [ffn, hidden]; only for swiglu and geglu. */
  std::optional<TensorSource> gate;
  /** [ffn, hidden] */
  TensorSource up;
  /** [hidden, ffn] */
  TensorSource down;
  /** Of the products. */
  std::optional<TensorSource> gate_bias = {}, up_bias = {}, down_bias = {};
  GluForm glu = {};
  std::optional<ReferenceLatent> latent = {};
  /** [hidden], added to the result. */
  std::optional<TensorSource> extra_bias = {};
};

/** The experts that every row goes to are the last ones. */
struct ReferenceShared {
  std::span<const float> weights;
  std::optional<TensorSource> gate;
};

/** Experts that some rows choose among in place of the others; they are the last before the shared ones. */
struct ReferenceIsolated {
  /** [isolated experts, hidden] */
  TensorSource gate;
  std::span<const float> selection_bias;
  /** [rows]: 1 for those rows, 0 for others. */
  std::span<const uint8_t> rows;
};

/** The fields are those of ReferenceLayer in native/index.ts; empty spans stand for null. */
struct ReferenceLayer {
  std::optional<TensorSource> norm;
  double epsilon = 0;
  /** Added to the norm's weight. */
  double norm_offset = 0;
  /** Of the block's output, with the same epsilon. */
  std::optional<TensorSource> output_norm = {};
  TensorSource gate;
  std::span<const float> gate_bias;
  std::span<const float> selection_bias;
  RoutingSpec routing;
  std::optional<ReferenceIsolated> isolated = {};
  std::span<const uint32_t> given;
  std::span<const float> given_weights;
  std::vector<ReferenceExpert> experts;
  ReferenceShared shared;
  /** Of the gate alone: rows are divided by sqrt(mean of squares + this), and multiplied by gate_scale, [hidden]. */
  std::optional<double> row_epsilon = {};
  std::span<const float> gate_scale = {};
  /** [experts]; empty: weights are as they are. */
  std::span<const float> expert_scale = {};
  bool residual = true;
};

struct ReferenceResult {
  std::vector<double> rows;
  std::vector<uint32_t> experts;
  std::vector<double> weights;
  std::vector<double> regret;
  std::vector<double> logit_regret;
  std::vector<double> logit_scale;
};

/**
 * One layer in float64, from the gate's weights as they are stored and from the others in BF16. It is written for
 * plainness and shares no code with the kernels, so that it can judge them. `rows` is [row_count, hidden]. Throws INVALID_ARGUMENT, naming the field, if shapes do not fit.
 */
ReferenceResult reference_layer(std::span<const double> rows, size_t hidden, const ReferenceLayer& layer,
                                ThreadPool& pool);

}  // namespace switchyard
