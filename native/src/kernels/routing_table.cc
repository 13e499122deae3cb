#include "kernels/routing_table.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace switchyard {
namespace {

std::optional<RoutingFault> check_weights(std::span<const float> weights) {
  const auto wrong = std::ranges::find_if_not(weights, [](float weight) { return std::isfinite(weight); });
  if (wrong == weights.end()) return std::nullopt;
  return RoutingFault{RoutingFault::Field::weights, static_cast<std::size_t>(wrong - weights.begin()), *wrong};
}

}  // namespace

RoutingTable::RoutingTable(SlabRef memory, std::size_t tokens, std::size_t top_k,
                           std::vector<std::uint32_t> expert_counts)
    : memory_(std::move(memory)),
      tokens_(tokens),
      top_k_(top_k),
      expert_counts_(std::move(expert_counts)),
      experts_(reinterpret_cast<std::uint32_t*>(memory_->data())),
      weights_(reinterpret_cast<float*>(experts_ + tokens * stride())) {}

std::optional<RoutingFault> RoutingTable::write(std::size_t first, std::span<const std::uint8_t> experts,
                                                std::span<const std::uint8_t> weights) {
  const std::span own_experts(experts_ + first * stride(), experts.size() / sizeof(std::uint32_t));
  const std::span own_weights(weights_ + first * stride(), weights.size() / sizeof(float));
  std::memcpy(own_experts.data(), experts.data(), own_experts.size_bytes());
  std::memcpy(own_weights.data(), weights.data(), own_weights.size_bytes());
  const auto fault = check_experts(own_experts);
  return fault ? fault : check_weights(own_weights);
}

void RoutingTable::read(std::size_t first, std::span<std::uint8_t> experts, std::span<std::uint8_t> weights) const {
  std::memcpy(experts.data(), experts_ + first * stride(), experts.size());
  std::memcpy(weights.data(), weights_ + first * stride(), weights.size());
}

std::optional<RoutingFault> RoutingTable::check_experts(std::span<const std::uint32_t> experts) const {
  for (std::size_t start = 0, layer = 0; start < experts.size(); start += top_k_) {
    for (std::size_t i = start; i < start + top_k_; ++i) {
      if (experts[i] < expert_counts_[layer]) continue;
      return RoutingFault{RoutingFault::Field::experts, i, static_cast<double>(experts[i])};
    }
    layer = layer + 1 == layers() ? 0 : layer + 1;
  }
  return std::nullopt;
}

void RoutingTable::gather(std::size_t layer, std::size_t token_count, std::size_t slots, std::uint32_t* experts,
                          float* weights) const {
  std::size_t from = layer * top_k_;
  for (std::size_t t = 0; t < token_count; ++t, from += stride()) {
    std::copy_n(experts_ + from, top_k_, experts + t * slots);
    std::copy_n(weights_ + from, top_k_, weights + t * slots);
  }
}

void RoutingTable::scatter(std::size_t layer, std::size_t token_count, std::size_t slots, const std::uint32_t* experts,
                           const float* weights) {
  std::size_t to = layer * top_k_;
  for (std::size_t t = 0; t < token_count; ++t, to += stride()) {
    std::copy_n(experts + t * slots, top_k_, experts_ + to);
    std::copy_n(weights + t * slots, top_k_, weights_ + to);
  }
}

}  // namespace switchyard
