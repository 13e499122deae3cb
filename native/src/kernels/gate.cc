#include "kernels/gate.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "kernels/choice.h"
#include "kernels/norm.h"
#include "kernels/scores.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

void check_routing(const RoutingSpec& routing, std::size_t experts) {
  const std::size_t groups = routing.groups;
  if (routing.top_k == 0 || routing.top_k > experts) {
    throw_invalid("routing.topK", routing.top_k, "1 to " + std::to_string(experts) + ", the number of experts");
  }
  if (!std::isfinite(routing.scale)) throw_invalid("routing.scale", routing.scale, "a finite number");
  if (groups == 0 || experts % groups != 0) {
    throw_invalid("routing.groups", groups, "a divisor of the number of experts, " + std::to_string(experts));
  }
  if (routing.groups_chosen == 0 || routing.groups_chosen > groups) {
    throw_invalid("routing.groupsChosen", routing.groups_chosen, "1 to " + std::to_string(groups));
  }
  if (routing.groups_chosen * (experts / groups) < routing.top_k) {
    throw_invalid("routing.groupsChosen", routing.groups_chosen,
                  "groups with topK experts among them, " + std::to_string(routing.top_k));
  }
  if (groups > 1 && routing.group_score == RoutingSpec::GroupScore::top2 && experts / groups < 2) {
    throw_invalid("routing.groupScore", "top2", "max, for groups of one expert");
  }
}

void check_bias(std::span<const float> bias, std::size_t experts, const std::string& field) {
  if (!bias.empty() && bias.size() != experts) throw_invalid(field + ".length", bias.size(), std::to_string(experts));
  for (const float value : bias) {
    if (!std::isfinite(value)) throw_invalid(field, value, "finite numbers");
  }
}

void check_token_experts(std::span<const std::uint32_t> token_experts, std::size_t experts, std::size_t top_k) {
  if (token_experts.size() % top_k != 0) {
    throw_invalid("tokenExperts.length", token_experts.size(), "a multiple of topK, " + std::to_string(top_k));
  }
  for (const std::uint32_t expert : token_experts) {
    if (expert >= experts) throw_invalid("tokenExperts", expert, "0 to " + std::to_string(experts - 1));
  }
}

void check_isolated(const IsolatedChoice& isolated, const GateExtras& extras, std::size_t experts) {
  if (isolated.experts >= experts) {
    throw_invalid("isolated.experts", isolated.experts, "below the number of experts, " + std::to_string(experts));
  }
  if (!extras.token_experts.empty()) throw_invalid("isolated", "experts of their own", "null, as there are tokenExperts");
  if (!std::ranges::is_sorted(isolated.token_ids)) throw_invalid("isolated.tokenIds", "unsorted", "ascending ids");
}

/** A block of some rows in the form that a kernel reads. */
struct RowScratch {
  std::vector<scores::Bf16Pair> pairs;
  std::vector<float> wide;
};

std::size_t divide_up(std::size_t value, std::size_t by) { return (value + by - 1) / by; }

bool is_bf16(float value) { return (std::bit_cast<std::uint32_t>(value) & 0xffffu) == 0; }

/** Adds element i of an expert to what its pair has; `panels` begins as zeros. */
void place(float value, std::size_t i, std::size_t lane, scores::Bf16Pair* panel) {
  panel[i / 2 * scores::panel_width + lane] |= std::bit_cast<std::uint32_t>(value) >> 16 << (i % 2 * 16);
}
void place(float value, std::size_t i, std::size_t lane, float* panel) { panel[i * scores::panel_width + lane] = value; }

/** [experts, hidden] as scores::Block wants it; lanes without an expert, and the element beyond an odd hidden, are zero. */
template <typename Weight>
std::vector<Weight> to_panels(const float* weight, std::size_t experts, std::size_t hidden) {
  const std::size_t stride = divide_up(hidden, 2) * scores::weights_per_pair<Weight> * scores::panel_width;
  std::vector<Weight> panels(divide_up(experts, scores::panel_width) * stride);
  for (std::size_t e = 0; e < experts; ++e) {
    Weight* const panel = panels.data() + e / scores::panel_width * stride;
    for (std::size_t i = 0; i < hidden; ++i) place(weight[e * hidden + i], i, e % scores::panel_width, panel);
  }
  return panels;
}

}  // namespace

struct Gate::Prepared {
  std::size_t experts;
  std::size_t hidden;
  std::size_t pairs;
  std::size_t panels;
  RoutingSpec routing;
  /** In panels; pairs of BF16 where BF16 holds every weight exactly. */
  std::variant<std::vector<scores::Bf16Pair>, std::vector<float>> weights;
  /** [panels * panel_width] */
  std::vector<float> logit_bias;
  /** [experts] */
  std::vector<float> selection_bias;
  /** Of the shared experts. */
  std::vector<float> shared_weights;
  std::vector<float> expert_scale;
  std::optional<float> row_epsilon;
  /** [vocabulary, top_k] */
  std::vector<std::uint32_t> token_experts;
  /** Of IsolatedChoice. */
  std::size_t isolated;
  std::vector<std::uint32_t> isolated_ids;
  /** Their gate is one more row of the weights, behind those of the experts. */
  bool shared_gate;

  std::size_t slots() const { return routing.top_k + shared_weights.size(); }
  /** Writes a row's shared experts behind the first top_k. `logits`: of the row, with that of their gate. */
  void add_shared(const float* logits, std::uint32_t* experts, float* weights) const {
    const float share = shared_gate ? sigmoid_of(logits[this->experts]) : 1.0f;
    for (std::size_t s = 0; s < shared_weights.size(); ++s) {
      experts[routing.top_k + s] = static_cast<std::uint32_t>(this->experts + s);
      weights[routing.top_k + s] = shared_weights[s] * share;
    }
  }
  std::size_t logit_stride() const { return panels * scores::panel_width; }
  /** Logits [row_count, logit_stride] of at most rows_at_once rows; `next`: as in GateSession::route. */
  template <typename Weight>
  void compute_logits(const std::vector<Weight>& weight_panels, RowParts& rows, std::size_t row_count,
                      const std::uint16_t* next, RowScratch& scratch, float* logits) const;
};

template <typename Weight>
void Gate::Prepared::compute_logits(const std::vector<Weight>& weight_panels, RowParts& rows, std::size_t row_count,
                                    const std::uint16_t* next_rows, RowScratch& scratch, float* logits) const {
  constexpr std::size_t rows_at_once = GateSession::rows_at_once;
  constexpr std::size_t pair_weights = scores::weights_per_pair<Weight> * scores::panel_width;
  static const scores::Kernel kernel = scores::kernels<Weight>().front();
  if (kernel.wide) {
    scratch.wide.resize(rows_at_once * scores::wide_row_stride);
  } else {
    scratch.pairs.resize(rows_at_once * scores::row_stride);
  }
  const auto next = reinterpret_cast<std::uintptr_t>(next_rows);
  for (std::size_t r = 0; r < row_count; ++r) std::ranges::copy(logit_bias, logits + r * logit_stride());
  for (std::size_t pair = 0; pair < pairs; pair += scores::block_pairs) {
    const std::size_t block = std::min(scores::block_pairs, pairs - pair);
    const std::size_t elements = std::min(2 * block, hidden - 2 * pair);
    for (std::size_t r = 0; r < row_count; ++r) {
      if (kernel.wide) {
        float* const wide = &scratch.wide[r * scores::wide_row_stride];
        rows.widen(r, 2 * pair, elements, wide, wide + scores::odd_after);
      } else {
        rows.pair(r, 2 * pair, elements, &scratch.pairs[r * scores::row_stride]);
      }
    }
    kernel.add(scores::Block<Weight>{.rows = scratch.pairs.data(),
                                     .wide_rows = scratch.wide.data(),
                                     .row_count = row_count,
                                     .pairs = block,
                                     .weights = weight_panels.data() + pair * pair_weights,
                                     .panel_count = panels,
                                     .panel_stride = pairs * pair_weights,
                                     .logits = logits,
                                     .logit_stride = logit_stride(),
                                     .next = next + pair * row_count * sizeof(scores::Bf16Pair)});
  }
}

Gate::Gate(const float* weight, std::size_t experts, std::size_t hidden, std::span<const float> logit_bias,
           std::span<const float> selection_bias, const RoutingSpec& routing, const SharedChoice& shared, const GateExtras& extras) {
  if (experts == 0) throw_invalid("experts", experts, "1 or more");
  if (hidden == 0) throw_invalid("hidden", hidden, "1 or more");
  const IsolatedChoice& isolated = extras.isolated;
  if (isolated.experts > 0) {
    check_isolated(isolated, extras, experts);
    check_routing(routing, isolated.experts);
  }
  check_routing(routing, experts - isolated.experts);
  check_bias(logit_bias, experts, "logitBias");
  check_bias(selection_bias, experts, "selectionBias");

  auto prepared = std::make_unique<Prepared>();
  prepared->experts = experts;
  prepared->hidden = hidden;
  prepared->pairs = divide_up(hidden, 2);
  prepared->routing = routing;
  prepared->shared_weights.assign(shared.weights.begin(), shared.weights.end());
  check_bias(extras.expert_scale, experts, "expertScale");
  prepared->expert_scale.assign(extras.expert_scale.begin(), extras.expert_scale.end());
  prepared->row_epsilon = extras.row_epsilon;
  check_token_experts(extras.token_experts, experts, routing.top_k);
  prepared->token_experts.assign(extras.token_experts.begin(), extras.token_experts.end());
  prepared->isolated = isolated.experts;
  if (isolated.experts > 0) prepared->isolated_ids.assign(isolated.token_ids.begin(), isolated.token_ids.end());
  prepared->shared_gate = shared.gate != nullptr;
  std::vector<float> rows(weight, weight + experts * hidden);
  if (shared.gate != nullptr) rows.insert(rows.end(), shared.gate, shared.gate + hidden);
  const std::size_t row_count = rows.size() / hidden;
  prepared->panels = divide_up(row_count, scores::panel_width);
  if (std::ranges::all_of(rows, is_bf16)) {
    prepared->weights = to_panels<scores::Bf16Pair>(rows.data(), row_count, hidden);
  } else {
    prepared->weights = to_panels<float>(rows.data(), row_count, hidden);
  }
  prepared->logit_bias.assign(logit_bias.begin(), logit_bias.end());
  prepared->logit_bias.resize(prepared->logit_stride());
  prepared->selection_bias.assign(selection_bias.begin(), selection_bias.end());
  prepared->selection_bias.resize(experts);
  prepared_ = std::move(prepared);
}

Gate::~Gate() = default;
Gate::Gate(Gate&&) noexcept = default;
Gate& Gate::operator=(Gate&&) noexcept = default;

std::size_t Gate::experts() const { return prepared_->experts; }
std::size_t Gate::hidden() const { return prepared_->hidden; }
const RoutingSpec& Gate::routing() const { return prepared_->routing; }
std::size_t Gate::shared() const { return prepared_->shared_weights.size(); }
std::optional<float> Gate::row_epsilon() const { return prepared_->row_epsilon; }
bool Gate::has_shared_gate() const { return prepared_->shared_gate; }
std::size_t Gate::vocabulary() const { return prepared_->token_experts.size() / prepared_->routing.top_k; }
bool Gate::isolates() const { return prepared_->isolated > 0; }
std::size_t Gate::bytes() const {
  return std::visit([](const auto& found) { return found.size() * sizeof found[0]; }, prepared_->weights);
}

void Gate::route(const std::uint16_t* rows, std::size_t row_count, std::span<const float> bias,
                 std::uint32_t* chosen_experts, float* chosen_weights, const std::uint32_t* token_ids) const {
  constexpr std::size_t step = GateSession::rows_at_once;
  GateSession session(*this, bias);
  for (std::size_t first = 0; first < row_count; first += step) {
    const std::size_t count = std::min(step, row_count - first);
    PlainRows block(rows + first * hidden(), hidden());
    const std::size_t slot = first * slots();
    std::vector<float> factors;
    if (row_epsilon()) factors = row_factors(rows + first * hidden(), count, hidden(), *row_epsilon());
    session.route(block, count, rows + (first + count) * hidden(), chosen_experts + slot, chosen_weights + slot,
                  factors.empty() ? nullptr : factors.data(), token_ids == nullptr ? nullptr : token_ids + first);
  }
}

void Gate::share(std::size_t row_count, std::uint32_t* experts, float* weights) const {
  for (std::size_t slot = 0; slot < row_count * slots(); slot += slots()) {
    prepared_->add_shared(nullptr, experts + slot, weights + slot);
  }
}

namespace {

/** Experts [first, first + count) that rows choose among; with what is behind them, `padded`. */
struct Pool {
  Pool(const RoutingSpec& routing, const std::vector<float>& selection_bias, std::size_t first, std::size_t count,
       std::size_t padded)
      : first(first),
        count(count),
        chooser(routing, {&selection_bias[first], &selection_bias[first] + count}, padded - count) {}

  /** Chooser::choose from a row's logits, of all experts. */
  void choose(float* logits, std::size_t top_k, std::uint32_t* experts, float* weights) {
    // To the front, where there is padding behind them.
    if (first > 0) std::copy_n(logits + first, count, logits);
    chooser.choose(logits, experts, weights);
    for (std::size_t j = 0; j < top_k; ++j) experts[j] += static_cast<std::uint32_t>(first);
  }

  std::size_t first;
  std::size_t count;
  Chooser chooser;
};

}  // namespace

struct GateSession::Scratch {
  Pool common;
  std::optional<Pool> isolated;
  RowScratch rows;
  std::vector<float> logits;
};

GateSession::GateSession(const Gate& gate, std::span<const float> bias) : gate_(*gate.prepared_) {
  check_bias(bias, gate_.experts, "bias");
  std::vector<float> selection_bias = gate_.selection_bias;
  for (std::size_t e = 0; e < bias.size(); ++e) selection_bias[e] += bias[e];
  const std::size_t stride = gate_.logit_stride();
  const std::size_t common = gate_.experts - gate_.isolated;
  const auto pool = [&](std::size_t first, std::size_t count) {
    // As a gate of these experts alone has it.
    const std::size_t padded = gate_.isolated == 0 ? stride : divide_up(count, scores::panel_width) * scores::panel_width;
    return Pool(gate_.routing, selection_bias, first, count, padded);
  };
  std::optional<Pool> isolated;
  if (gate_.isolated > 0) isolated.emplace(pool(common, gate_.isolated));
  scratch_ = std::make_unique<Scratch>(pool(0, common), std::move(isolated), RowScratch(),
                                       std::vector<float>(rows_at_once * stride));
}

GateSession::~GateSession() = default;

void GateSession::route(RowParts& rows, std::size_t row_count, const std::uint16_t* next, std::uint32_t* chosen_experts,
                        float* chosen_weights, const float* row_factors, const std::uint32_t* token_ids) {
  if (token_ids == nullptr && !gate_.token_experts.empty()) throw_invalid("tokenIds", "null", "the ids of the rows' tokens");
  float* const logits = scratch_->logits.data();
  std::visit(
      [&](const auto& panels) { gate_.compute_logits(panels, rows, row_count, next, scratch_->rows, logits); },
      gate_.weights);
  const std::size_t top_k = gate_.routing.top_k;
  for (std::size_t r = 0; r < row_count; ++r) {
    float* const own = logits + r * gate_.logit_stride();
    std::uint32_t* const experts = chosen_experts + r * gate_.slots();
    float* const weights = chosen_weights + r * gate_.slots();
    if (row_factors != nullptr) {
      for (std::size_t e = 0; e < gate_.experts; ++e) own[e] *= row_factors[r];
    }
    // First, since the choice overwrites what is behind the experts' logits.
    gate_.add_shared(own, experts, weights);
    if (!gate_.token_experts.empty()) {
      std::copy_n(&gate_.token_experts[token_ids[r] * top_k], top_k, experts);
      scratch_->common.chooser.weigh_chosen(own, experts, weights);
    } else {
      const bool isolated = token_ids != nullptr && std::ranges::binary_search(gate_.isolated_ids, token_ids[r]);
      (isolated ? *scratch_->isolated : scratch_->common).choose(own, top_k, experts, weights);
    }
    if (gate_.expert_scale.empty()) continue;
    for (std::size_t j = 0; j < top_k; ++j) weights[j] *= gate_.expert_scale[experts[j]];
  }
}

void GateSession::share(RowParts& rows, std::size_t row_count, const std::uint16_t* next, std::uint32_t* chosen_experts,
                        float* chosen_weights) {
  std::visit(
      [&](const auto& panels) {
        gate_.compute_logits(panels, rows, row_count, next, scratch_->rows, scratch_->logits.data());
      },
      gate_.weights);
  for (std::size_t r = 0; r < row_count; ++r) {
    const std::size_t slot = r * gate_.slots();
    gate_.add_shared(scratch_->logits.data() + r * gate_.logit_stride(), chosen_experts + slot, chosen_weights + slot);
  }
}


void count_experts(std::span<const std::uint32_t> chosen_experts, std::span<std::uint32_t> counts) {
  for (const std::uint32_t expert : chosen_experts) ++counts[expert];
}

}  // namespace switchyard
