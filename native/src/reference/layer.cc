#include "reference/layer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "reference/matrix.h"
#include "reference/routing.h"
#include "runtime/error.h"

namespace switchyard {

namespace {

/** One use of an expert by a row. */
struct Use {
  size_t row;
  double weight;
};

void check_shape(const TensorSource& source, size_t rows, size_t columns, const std::string& field) {
  if (source.rows == rows && source.columns == columns) return;
  throw_invalid(field, std::to_string(source.rows) + " x " + std::to_string(source.columns),
                std::to_string(rows) + " x " + std::to_string(columns));
}

void check_elements(const TensorSource& source, size_t elements, const std::string& field) {
  if (source.elements() != elements) throw_invalid(field, source.elements(), std::to_string(elements));
}

void check_routing(const RoutingSpec& routing, size_t experts) {
  const std::string up_to = "1 to ";
  if (routing.groups < 1 || experts % routing.groups != 0) {
    throw_invalid("routing.groups", routing.groups, "a divisor of " + std::to_string(experts));
  }
  if (routing.groups_chosen < 1 || routing.groups_chosen > routing.groups) {
    throw_invalid("routing.groupsChosen", routing.groups_chosen, up_to + std::to_string(routing.groups));
  }
  const size_t choosable = experts / routing.groups * routing.groups_chosen;
  if (routing.top_k < 1 || routing.top_k > choosable) {
    throw_invalid("routing.topK", routing.top_k, up_to + std::to_string(choosable));
  }
}

/** The routed experts that a row chooses among, from `first` on. */
struct Pool {
  size_t first;
  size_t experts;
  std::span<const float> selection_bias;
};

Pool common_pool(const ReferenceLayer& layer) { return {0, layer.gate.rows, layer.selection_bias}; }

Pool pool_of(const ReferenceLayer& layer, size_t row) {
  if (!layer.isolated || layer.isolated->rows[row] == 0) return common_pool(layer);
  return {layer.gate.rows, layer.isolated->gate.rows, layer.isolated->selection_bias};
}

void check_pool(const Pool& pool, const RoutingSpec& routing, const std::string& field) {
  check_routing(routing, pool.experts);
  const auto& bias = pool.selection_bias;
  if (!bias.empty() && bias.size() != pool.experts) throw_invalid(field + ".length", bias.size(), std::to_string(pool.experts));
}

/** Checks the gate of isolated experts. Returns how many there are. */
size_t check_isolated(size_t row_count, size_t hidden, const ReferenceLayer& layer) {
  if (!layer.isolated) return 0;
  const auto& [gate, selection_bias, rows] = *layer.isolated;
  check_pool({0, gate.rows, selection_bias}, layer.routing, "isolated.selectionBias");
  check_shape(gate, gate.rows, hidden, "isolated.gate");
  if (rows.size() != row_count) throw_invalid("isolated.rows.length", rows.size(), std::to_string(row_count));
  return gate.rows;
}

void check_layer(std::span<const double> rows, size_t hidden, const ReferenceLayer& layer) {
  if (hidden == 0 || rows.empty() || rows.size() % hidden != 0) {
    throw_invalid("rows.length", rows.size(), "a positive multiple of hidden " + std::to_string(hidden));
  }
  if (layer.shared.weights.size() >= layer.experts.size()) {
    throw_invalid("shared.weights.length", layer.shared.weights.size(), "below the number of experts");
  }
  const size_t experts = layer.experts.size() - layer.shared.weights.size();
  const size_t isolated = check_isolated(rows.size() / hidden, hidden, layer);
  check_shape(layer.gate, experts - std::min(experts, isolated), hidden, "gate");
  check_pool(common_pool(layer), layer.routing, "selectionBias");
  if (layer.norm) check_shape(*layer.norm, 1, hidden, "norm");
  if (layer.output_norm) check_shape(*layer.output_norm, 1, hidden, "outputNorm");
  if (!layer.gate_bias.empty() && layer.gate_bias.size() != layer.gate.rows) {
    throw_invalid("gateBias.length", layer.gate_bias.size(), std::to_string(layer.gate.rows));
  }
  if (!layer.given.empty()) {
    const size_t choices = rows.size() / hidden * layer.routing.top_k;
    if (layer.given.size() != choices) throw_invalid("given.length", layer.given.size(), std::to_string(choices));
    for (const uint32_t expert : layer.given) {
      if (expert >= experts) throw_invalid("given", expert, "below " + std::to_string(experts));
    }
  }
  if (!layer.given_weights.empty() && layer.given_weights.size() != layer.given.size()) {
    throw_invalid("givenWeights.length", layer.given_weights.size(), std::to_string(layer.given.size()));
  }
  for (const ReferenceExpert& expert : layer.experts) {
    const size_t ffn = expert.up.rows;
    const size_t width = expert.latent ? expert.latent->input.rows : hidden;
    check_shape(expert.up, ffn, width, "experts.up");
    check_shape(expert.down, width, ffn, "experts.down");
    if (expert.gate.has_value() != is_gated(expert.activation)) {
      throw_invalid("experts.gate", expert.gate ? "a matrix" : "null", "a matrix for swiglu and geglu alone");
    }
    if (expert.gate) check_shape(*expert.gate, ffn, width, "experts.gate");
    if (expert.gate_bias) check_elements(*expert.gate_bias, ffn, "experts.bias.gate");
    if (expert.up_bias) check_elements(*expert.up_bias, ffn, "experts.bias.up");
    if (expert.down_bias) check_elements(*expert.down_bias, width, "experts.bias.down");
    if (expert.extra_bias) check_elements(*expert.extra_bias, hidden, "experts.extraBias");
    if (!expert.latent) continue;
    check_shape(expert.latent->input, width, hidden, "experts.latent.input");
    check_shape(expert.latent->output, hidden, width, "experts.latent.output");
    if (expert.latent->input_bias) check_elements(*expert.latent->input_bias, width, "experts.latent.inputBias");
  }
}

/** Results that BF16 and float32 cannot hold are infinite here too; what follows from them is then not finite either. */
void overflow(std::vector<double>& values) {
  constexpr double limit = 0x1.ffp127;
  for (double& value : values) {
    if (std::abs(value) >= limit) value = std::copysign(std::numeric_limits<double>::infinity(), value);
  }
}

/** The gate is defined to read what is below the normal floats as zero. */
std::vector<double> without_subnormals(std::vector<double> values) {
  for (double& value : values) {
    if (std::abs(value) < std::numeric_limits<float>::min()) value = 0;
  }
  return values;
}

/** x / sqrt(mean(x^2) + epsilon) * (weight + offset), row by row. */
std::vector<double> normalize(std::span<const double> rows, const std::vector<double>& weight, double offset, double epsilon) {
  const size_t hidden = weight.size();
  std::vector<double> output(rows.begin(), rows.end());
  for (size_t start = 0; start < rows.size(); start += hidden) {
    double* row = output.data() + start;
    const double factor = 1 / std::sqrt(dot(row, row, hidden) / static_cast<double>(hidden) + epsilon);
    for (size_t i = 0; i < hidden; ++i) row[i] *= factor * (weight[i] + offset);
  }
  overflow(output);
  return output;
}

/** Of two products' elements; NaN stays. */
double gated(const ReferenceExpert& expert, double gate, double up) {
  if (expert.activation == Activation::geglu) {
    return gate / 2 * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (gate + 0.044715 * gate * gate * gate))) * up;
  }
  const auto at_most = [](double value, double most) { return value > most ? most : value; };
  const GluForm& glu = expert.glu;
  const double bounded = at_most(gate, glu.gate_max);
  const double activated = at_most(bounded / (1 + std::exp(-glu.alpha * bounded)), glu.activation_max);
  return activated * (-at_most(-at_most(up, glu.up_max), glu.up_max) + glu.up_offset);
}

double ungated(Activation activation, double value) {
  if (activation == Activation::gelu) return value / 2 * (1 + std::erf(value / std::sqrt(2.0)));
  const double positive = value < 0 ? 0 : value;
  return positive * positive;
}

/** The expert's FFN for [count, hidden] inputs. */
std::vector<double> apply_expert(const ReferenceExpert& expert, const std::vector<double>& inputs, size_t count,
                                 ThreadPool& pool) {
  if (expert.activation == Activation::identity) return inputs;
  const auto add = [](const std::optional<TensorSource>& bias, std::vector<double>& rows) {
    if (!bias) return;
    const std::vector<double> added = read_doubles(*bias, Precision::stored);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] += added[i % added.size()];
  };
  const auto product = [&](const TensorSource& matrix, const std::optional<TensorSource>& bias,
                           const std::vector<double>& rows) {
    std::vector<double> products = multiply(matrix, rows.data(), count, Precision::bf16, pool);
    add(bias, products);
    overflow(products);
    return products;
  };
  const auto& latent = expert.latent;
  const std::vector<double> own = latent ? product(latent->input, latent->input_bias, inputs) : inputs;
  std::vector<double> inner = product(expert.up, expert.up_bias, own);
  if (is_gated(expert.activation)) {
    const std::vector<double> gate = product(*expert.gate, expert.gate_bias, own);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] = gated(expert, gate[i], inner[i]);
  } else {
    for (double& value : inner) value = ungated(expert.activation, value);
  }
  overflow(inner);
  std::vector<double> results = product(expert.down, expert.down_bias, inner);
  if (latent) results = product(latent->output, std::nullopt, results);
  add(expert.extra_bias, results);
  return results;
}

/** What the gate of the shared experts gives each row: 1 if there is none. */
std::vector<double> shared_gate(const ReferenceLayer& layer, const std::vector<double>& inputs, size_t row_count,
                                ThreadPool& pool) {
  if (!layer.shared.gate) return std::vector<double>(row_count, 1.0);
  std::vector<double> shares = multiply(*layer.shared.gate, inputs.data(), row_count, Precision::stored, pool);
  for (double& share : shares) share = std::isnan(share) ? 0.5 : 1 / (1 + std::exp(-share));
  return shares;
}

/** Logits of every row, [row_count, routed experts]. */
std::vector<double> logits_of(const ReferenceLayer& layer, const std::vector<double>& inputs, size_t row_count, ThreadPool& pool) {
  std::vector<double> common = multiply(layer.gate, inputs.data(), row_count, Precision::stored, pool);
  for (size_t i = 0; i < common.size() && !layer.gate_bias.empty(); ++i) common[i] += layer.gate_bias[i % layer.gate.rows];
  if (!layer.isolated) return common;
  std::vector<double> isolated = multiply(layer.isolated->gate, inputs.data(), row_count, Precision::stored, pool);
  std::vector<double> logits;
  for (size_t row = 0; row < row_count; ++row) {
    for (const auto* part : {&common, &isolated}) {
      const size_t experts = part->size() / row_count;
      logits.insert(logits.end(), part->begin() + row * experts, part->begin() + (row + 1) * experts);
    }
  }
  return logits;
}

/** choose_experts within the row's pool, by the numbers of the layer. What is given of another pool is wrong whatever its scores. */
ReferenceChoice choose_within(const Pool& pool, std::span<const double> logits, const RoutingSpec& routing,
                              std::span<const uint32_t> given) {
  const auto outside = [&](uint32_t expert) { return expert < pool.first || expert - pool.first >= pool.experts; };
  const bool wrong = std::ranges::any_of(given, outside);
  std::vector<uint32_t> own;
  for (const uint32_t expert : given) own.push_back(expert - static_cast<uint32_t>(pool.first));
  if (wrong) own.clear();
  ReferenceChoice choice = choose_experts(logits.subspan(pool.first, pool.experts), pool.selection_bias, routing, own);
  for (uint32_t& expert : choice.experts) expert += static_cast<uint32_t>(pool.first);
  if (wrong) {
    choice.regret = choice.logit_regret = std::numeric_limits<double>::infinity();
    std::ranges::fill(choice.weights, std::numeric_limits<double>::quiet_NaN());
  }
  return choice;
}

/** Adds what one expert makes of the rows that use it. */
void add_expert(const ReferenceLayer& layer, size_t number, const std::vector<Use>& uses,
                const std::vector<double>& inputs, size_t hidden, ThreadPool& pool, std::vector<double>& output) {
  if (uses.empty()) return;
  const bool weigh_input = layer.routing.weight_on == RoutingSpec::WeightOn::input;
  std::vector<double> gathered(uses.size() * hidden);
  for (size_t i = 0; i < uses.size(); ++i) {
    const double factor = weigh_input ? uses[i].weight : 1;
    for (size_t j = 0; j < hidden; ++j) gathered[i * hidden + j] = factor * inputs[uses[i].row * hidden + j];
  }
  overflow(gathered);
  const std::vector<double> results = apply_expert(layer.experts[number], gathered, uses.size(), pool);
  for (size_t i = 0; i < uses.size(); ++i) {
    const double factor = weigh_input ? 1 : uses[i].weight;
    for (size_t j = 0; j < hidden; ++j) output[uses[i].row * hidden + j] += factor * results[i * hidden + j];
  }
}

}  // namespace

ReferenceResult reference_layer(std::span<const double> rows, size_t hidden, const ReferenceLayer& layer,
                                ThreadPool& pool) {
  check_layer(rows, hidden, layer);
  const size_t row_count = rows.size() / hidden;
  const size_t shared = layer.shared.weights.size();
  const size_t experts = layer.experts.size() - shared;
  const size_t top_k = layer.routing.top_k;
  const std::vector<double> inputs = layer.norm ? normalize(rows, read_doubles(*layer.norm), layer.norm_offset, layer.epsilon)
                                                : std::vector<double>(rows.begin(), rows.end());
  std::vector<double> gate_inputs = without_subnormals(inputs);
  if (layer.row_epsilon) {
    const std::vector<double> scale(layer.gate_scale.begin(), layer.gate_scale.end());
    gate_inputs = normalize(gate_inputs, scale, 0, *layer.row_epsilon);
  }
  const std::vector<double> logits = logits_of(layer, gate_inputs, row_count, pool);
  double gate_norm = largest_row_norm(layer.gate, Precision::stored, pool);
  if (layer.isolated) gate_norm = std::max(gate_norm, largest_row_norm(layer.isolated->gate, Precision::stored, pool));
  double bias_max = 0;
  for (const float bias : layer.gate_bias) bias_max = std::max(bias_max, std::abs(static_cast<double>(bias)));

  ReferenceResult result;
  std::vector<std::vector<Use>> uses(experts + shared);
  const std::vector<double> shares = shared_gate(layer, gate_inputs, row_count, pool);
  for (size_t row = 0; row < row_count; ++row) {
    const std::span<const double> own(logits.data() + row * experts, experts);
    const auto given = layer.given.empty() ? layer.given : layer.given.subspan(row * top_k, top_k);
    ReferenceChoice choice = choose_within(pool_of(layer, row), own, layer.routing, given);
    const auto used = given.empty() ? std::span<const uint32_t>(choice.experts) : given;
    for (size_t i = 0; i < top_k && !layer.expert_scale.empty(); ++i) choice.weights[i] *= layer.expert_scale[used[i]];
    for (size_t i = 0; i < top_k; ++i) {
      const double weight = layer.given_weights.empty() ? choice.weights[i] : layer.given_weights[row * top_k + i];
      uses[used[i]].push_back({row, weight});
    }
    for (size_t s = 0; s < shared; ++s) uses[experts + s].push_back({row, layer.shared.weights[s] * shares[row]});
    result.experts.insert(result.experts.end(), choice.experts.begin(), choice.experts.end());
    result.weights.insert(result.weights.end(), choice.weights.begin(), choice.weights.end());
    result.regret.push_back(choice.regret);
    result.logit_regret.push_back(choice.logit_regret);
    const double* input = gate_inputs.data() + row * hidden;
    result.logit_scale.push_back(std::sqrt(dot(input, input, hidden)) * gate_norm + bias_max);
  }

  result.rows.assign(rows.size(), 0);
  for (size_t expert = 0; expert < experts + shared; ++expert) {
    add_expert(layer, expert, uses[expert], inputs, hidden, pool, result.rows);
  }
  if (layer.output_norm) result.rows = normalize(result.rows, read_doubles(*layer.output_norm), 0, layer.epsilon);
  for (size_t i = 0; layer.residual && i < rows.size(); ++i) result.rows[i] += rows[i];
  overflow(result.rows);
  return result;
}

}  // namespace switchyard
