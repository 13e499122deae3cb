#include "addon/reference_operation.h"

#include <memory>

#include "addon/expert_handles.h"
#include "addon/gate_handle.h"
#include "addon/model_operations.h"
#include "addon/process.h"
#include "reference/layer.h"

namespace switchyard::addon {

namespace {

std::optional<TensorSource> to_optional_tensor(const Fields& fields, const char* field) {
  if (fields.is_null(field)) return std::nullopt;
  return to_tensor(fields.fields(field));
}

template <typename Element>
std::span<const Element> span_or_null(const Fields& fields, const char* field, Operation& operation) {
  if (fields.is_null(field)) return {};
  return held_span<Element>(operation, fields.value(field), fields.name(field));
}

template <typename Element>
std::span<const Element> optional_span(const Fields& fields, const char* field, Operation& operation) {
  if (!fields.has(field)) return {};
  return held_span<Element>(operation, fields.value(field), fields.name(field));
}

ReferenceLatent to_latent(const Fields& fields) {
  return {.input = to_tensor(fields.fields("input")),
          .input_bias = to_optional_tensor(fields, "inputBias"),
          .output = to_tensor(fields.fields("output"))};
}

std::vector<ReferenceExpert> to_experts(const Napi::Value& value, const std::string& field) {
  if (!value.IsArray()) throw_invalid(field, show(value), "an array");
  const auto array = value.As<Napi::Array>();
  std::vector<ReferenceExpert> experts;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Fields expert(array.Get(i), field + "[" + std::to_string(i) + "]");
    experts.push_back({
        .activation = to_activation(expert),
        .gate = to_optional_tensor(expert, "gate"),
        .up = to_tensor(expert.fields("up")),
        .down = to_tensor(expert.fields("down")),
        .glu = to_glu(expert),
    });
    if (expert.has("latent")) experts.back().latent = to_latent(expert.fields("latent"));
    if (expert.has("extraBias")) experts.back().extra_bias = to_tensor(expert.fields("extraBias"));
    if (!expert.has("bias")) continue;
    const Fields bias = expert.fields("bias");
    experts.back().gate_bias = to_optional_tensor(bias, "gate");
    experts.back().up_bias = to_tensor(bias.fields("up"));
    experts.back().down_bias = to_tensor(bias.fields("down"));
  }
  return experts;
}

ReferenceShared to_shared(const Fields& fields, Operation& operation) {
  if (!fields.has("shared")) return {};
  const Fields shared = fields.fields("shared");
  return {.weights = held_span<float>(operation, shared.value("weights"), shared.name("weights")),
          .gate = to_optional_tensor(shared, "gate")};
}

std::optional<ReferenceIsolated> to_isolated(const Fields& fields, Operation& operation) {
  if (!fields.has("isolated")) return std::nullopt;
  const Fields isolated = fields.fields("isolated");
  return ReferenceIsolated{.gate = to_tensor(isolated.fields("gate")),
                           .selection_bias = span_or_null<float>(isolated, "selectionBias", operation),
                           .rows = held_span<uint8_t>(operation, isolated.value("rows"), isolated.name("rows"))};
}

ReferenceLayer to_layer(const Fields& fields, Operation& operation) {
  return {
      .norm = to_optional_tensor(fields, "norm"),
      .epsilon = fields.number("epsilon"),
      .norm_offset = fields.has("normOffset") ? fields.number("normOffset") : 0,
      .output_norm = fields.has("outputNorm") ? to_optional_tensor(fields, "outputNorm") : std::nullopt,
      .gate = to_tensor(fields.fields("gate")),
      .gate_bias = span_or_null<float>(fields, "gateBias", operation),
      .selection_bias = span_or_null<float>(fields, "selectionBias", operation),
      .routing = to_routing(fields.fields("routing")),
      .isolated = to_isolated(fields, operation),
      .given = span_or_null<uint32_t>(fields, "given", operation),
      .given_weights = span_or_null<float>(fields, "givenWeights", operation),
      .experts = to_experts(fields.value("experts"), fields.name("experts")),
      .shared = to_shared(fields, operation),
      .row_epsilon = fields.has("rowEpsilon") ? std::optional(fields.number("rowEpsilon")) : std::nullopt,
      .gate_scale = optional_span<float>(fields, "gateScale", operation),
      .expert_scale = optional_span<float>(fields, "expertScale", operation),
      .residual = fields.boolean("residual"),
  };
}

void prepare_reference(const Napi::CallbackInfo& info, Operation& operation) {
  const auto rows = held_span<double>(operation, info[0], "rows");
  const uint64_t hidden = to_integer(info[1], "hidden", 1, hidden_max);
  const auto layer = std::make_shared<const ReferenceLayer>(to_layer(Fields(info[2], "layer"), operation));
  const auto computed = std::make_shared<ReferenceResult>();
  operation.run = [=] { *computed = reference_layer(rows, hidden, *layer, pool()); };
  operation.result = [computed](Napi::Env env) {
    auto result = Napi::Object::New(env);
    result.Set("rows", to_array<double>(env, computed->rows));
    result.Set("experts", to_array<uint32_t>(env, computed->experts));
    result.Set("weights", to_array<double>(env, computed->weights));
    result.Set("regret", to_array<double>(env, computed->regret));
    result.Set("logitRegret", to_array<double>(env, computed->logit_regret));
    result.Set("logitScale", to_array<double>(env, computed->logit_scale));
    return result;
  };
}

}  // namespace

void export_reference(Napi::Object exports) { export_operation(exports, "referenceLayer", prepare_reference); }

}  // namespace switchyard::addon
