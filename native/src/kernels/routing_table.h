#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "memory/slab.h"

namespace switchyard {

/** The first entry of given routing that is wrong. */
struct RoutingFault {
  enum class Field { experts, weights };
  Field field;
  /** In what was given. */
  std::size_t index;
  double value;
};

/** Experts and weights of a chunk's tokens at the layers of a batch, [tokens, layers, top_k]. */
class RoutingTable {
 public:
  /** `expert_counts`: of each layer. `memory`: bytes_for as many bytes. */
  RoutingTable(SlabRef memory, std::size_t tokens, std::size_t top_k, std::vector<std::uint32_t> expert_counts);

  static std::size_t bytes_for(std::size_t tokens, std::size_t top_k, std::size_t layers) {
    return tokens * top_k * layers * (sizeof(std::uint32_t) + sizeof(float));
  }

  std::size_t tokens() const { return tokens_; }
  std::size_t top_k() const { return top_k_; }
  std::size_t layers() const { return expert_counts_.size(); }
  std::size_t experts_at(std::size_t layer) const { return expert_counts_[layer]; }
  /** Of one token, in experts and as many weights. */
  std::size_t stride() const { return layers() * top_k_; }

  /**
   * Takes the routing of tokens from `first` on as messages carry it, little-endian and of any alignment. Experts must be in
   * range, weights finite: otherwise returns the first one that is not, experts before weights.
   */
  std::optional<RoutingFault> write(std::size_t first, std::span<const std::uint8_t> experts,
                                    std::span<const std::uint8_t> weights);
  /** The other way, as it is. */
  void read(std::size_t first, std::span<std::uint8_t> experts, std::span<std::uint8_t> weights) const;

  /** Copies a layer's top_k experts and weights of each token to the first of its `slots`, [token_count, slots]. */
  void gather(std::size_t layer, std::size_t token_count, std::size_t slots, std::uint32_t* experts, float* weights) const;
  /** The other way. */
  void scatter(std::size_t layer, std::size_t token_count, std::size_t slots, const std::uint32_t* experts,
               const float* weights);

 private:
  std::optional<RoutingFault> check_experts(std::span<const std::uint32_t> experts) const;

  SlabRef memory_;
  std::size_t tokens_;
  std::size_t top_k_;
  std::vector<std::uint32_t> expert_counts_;
  std::uint32_t* experts_;
  float* weights_;
};

}  // namespace switchyard
