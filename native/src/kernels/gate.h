#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "kernels/row_parts.h"

namespace switchyard {

/** How a layer chooses experts; the fields are those of RoutingSpec in native/index.ts. */
struct RoutingSpec {
  enum class Score { softmax, sigmoid, sqrt_softplus, sparse_mixer };
  enum class GroupScore { max, top2 };
  enum class Masked { zero, negative_infinity };
  enum class WeightOn { output, input };

  std::uint32_t top_k = 1;
  Score score = Score::softmax;
  bool renormalise = false;
  float scale = 1;
  /** Of the norm that weights are divided by: 1 or 2. */
  std::uint32_t norm_power = 1;
  /** Logits become cap · tanh(logit / cap); 0: they stay. */
  float logit_cap = 0;
  /** Of sparse_mixer: how far, as a share of itself, a logit may be below the best that counts beside it. */
  float mixer_reach = 0;
  std::uint32_t groups = 1;
  std::uint32_t groups_chosen = 1;
  GroupScore group_score = GroupScore::max;
  Masked masked = Masked::negative_infinity;
  /** For the experts; the gate does not look at it. */
  WeightOn weight_on = WeightOn::output;
};

/** Experts of their own for tokens of some ids, which no other token goes to (modality-isolated routing). */
struct IsolatedChoice {
  /** So many of the experts, the last ones; 0: there are none. */
  std::size_t experts = 0;
  /** Of those tokens, ascending. */
  std::span<const std::uint32_t> token_ids;
};

/** What a gate does beside its products. */
struct GateExtras {
  /** [experts]: what the weights of chosen experts are multiplied by in the end; empty: nothing. */
  std::span<const float> expert_scale;
  /** Divide a row's logits by sqrt(mean of its squares + this). */
  std::optional<float> row_epsilon;
  /** [vocabulary, top_k]: the experts that a row goes to by its token's id, which the scores then only weigh; empty: scores choose. */
  std::span<const std::uint32_t> token_experts;
  IsolatedChoice isolated;
};

/** Experts that every token goes to beside those chosen; their numbers follow those of the routed ones. */
struct SharedChoice {
  /** One for each. */
  std::span<const float> weights;
  /** [hidden]: each weight is multiplied by sigmoid(gate · x); null: they are as they are. */
  const float* gate = nullptr;
};

/**
 * Gate weights in the order the processor wants, with what the model adds to them. Immutable, so any number
 * of threads may route with one Gate.
 */
class Gate {
 public:
  /**
   * `weight` is [experts, hidden]; it is read here and not kept. The logits are float32 sums of its products, as it is. The biases are [experts] or empty:
   * `logit_bias` is added to the logits, `selection_bias` to the scores for choosing only.
   * Throws INVALID_ARGUMENT, naming the field, for sizes that do not fit together.
   */
  Gate(const float* weight, std::size_t experts, std::size_t hidden, std::span<const float> logit_bias,
       std::span<const float> selection_bias, const RoutingSpec& routing, const SharedChoice& shared = {},
       const GateExtras& extras = {});
  ~Gate();
  Gate(Gate&&) noexcept;
  Gate& operator=(Gate&&) noexcept;

  std::size_t experts() const;
  std::size_t hidden() const;
  const RoutingSpec& routing() const;
  std::size_t shared() const;
  /** Whether what the shared experts weigh depends on the row. */
  bool has_shared_gate() const;
  /** Of GateExtras; absent: logits are as they are. */
  std::optional<float> row_epsilon() const;
  /** Ids of tokens that experts are chosen by; 0: scores choose. */
  std::size_t vocabulary() const;
  /** Whether some experts are for tokens of some ids alone. */
  bool isolates() const;
  /** Experts of a row: those chosen and the shared ones. */
  std::size_t slots() const { return routing().top_k + shared(); }
  /** Memory of the prepared weights. */
  std::size_t bytes() const;

  /**
   * Chooses experts for `row_count` rows of [row_count, hidden] BF16. `bias` ([experts] or empty) is added to the
   * scores for choosing only. Writes [row_count, slots] experts, best first and the shared ones last, and their weights from unbiased scores.
   * The best is the one with the highest logit; where there is a bias, with the highest sum of score and bias, then the
   * highest logit. Ties go to the lower expert. A row's result has the same bits whatever rows are beside it, on every
   * processor. Weights are finite whatever the row holds: a logit beyond the range of floats counts as the largest float
   * of its sign, and a row with NaN among its logits is routed as if all of them were 0.
   * `token_ids`: [row_count], each below the vocabulary, of gates that have one. A gate that isolates routes a row with one of its
   * ids among the isolated experts, as a gate of these alone would, bit for bit, and other rows among the others so; null: there are
   * no such rows. Otherwise null.
   */
  void route(const std::uint16_t* rows, std::size_t row_count, std::span<const float> bias,
             std::uint32_t* chosen_experts, float* chosen_weights, const std::uint32_t* token_ids = nullptr) const;

  /** Writes the shared experts behind the first top_k of each row, without a gate of theirs. */
  void share(std::size_t row_count, std::uint32_t* experts, float* weights) const;

 private:
  friend class GateSession;
  struct Prepared;
  std::unique_ptr<const Prepared> prepared_;
};

/** A thread's use of a gate for rows that come piece by piece: its choice and its scratch memory. */
class GateSession {
 public:
  /**
   * Rows that share one pass over the weights: enough to pay for the pass, few enough that they, the next ones that are
   * fetched meanwhile, and their logits stay in a core's own cache.
   */
  static constexpr std::size_t rows_at_once = 24;

  /** `gate` must outlive it. `bias`: as in Gate::route. */
  GateSession(const Gate& gate, std::span<const float> bias);
  ~GateSession();
  GateSession(const GateSession&) = delete;
  GateSession& operator=(const GateSession&) = delete;

  /** Gate::route for at most rows_at_once rows. `row_factors`: what each row's logits are multiplied by. `next`: as much memory, wanted in the cache when this is done. */
  void route(RowParts& rows, std::size_t row_count, const std::uint16_t* next, std::uint32_t* chosen_experts,
             float* chosen_weights, const float* row_factors = nullptr, const std::uint32_t* token_ids = nullptr);
  /** The same where the first top_k of each row are there: writes the shared experts behind them. */
  void share(RowParts& rows, std::size_t row_count, const std::uint16_t* next, std::uint32_t* chosen_experts,
             float* chosen_weights);

 private:
  struct Scratch;
  const Gate::Prepared& gate_;
  std::unique_ptr<Scratch> scratch_;
};

/** Rows per expert: adds one to counts[e] for every entry e of `chosen_experts`. */
void count_experts(std::span<const std::uint32_t> chosen_experts, std::span<std::uint32_t> counts);

}  // namespace switchyard
