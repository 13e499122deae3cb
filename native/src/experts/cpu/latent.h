#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/weights.h"

namespace switchyard::cpu {

/** A product with one matrix, and what is added to it. */
class Linear {
 public:
  /** Throws as ExpertBackend::load does. `groups`: of k. `bias`: reads one value per row of the matrix; empty: nothing is added. */
  static Linear load(const PanelOrder& order, const MatrixSource& source, size_t groups, const std::function<std::vector<float>()>& bias);

  const PackedWeights& weights() const { return weights_; }
  /** [panels][columns of a panel] */
  const float* bias() const { return bias_.data(); }

 private:
  Linear(const PanelOrder& order, const MatrixSource& source, size_t groups, std::optional<PackedForm> form);

  PackedWeights weights_;
  PackedMemory memory_;
  std::vector<float> bias_;
};

/** The linear maps around the experts of a layer. */
struct Latent {
  size_t hidden;
  Linear input;
  Linear output;
};

/** Those that are in memory, so that the experts of a layer share one. */
class Latents {
 public:
  /** Lives as long as an expert has it. Throws as ExpertBackend::load does. Any thread may call it. */
  std::shared_ptr<const Latent> load(const PanelOrder& order, const LatentSource& source);

 private:
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<const Latent>> known_;
};

}  // namespace switchyard::cpu
