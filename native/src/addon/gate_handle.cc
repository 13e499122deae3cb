#include "addon/gate_handle.h"

#include "addon/slab_handle.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t experts_max = 65536;

std::span<const float> bias_of(const Fields& options, const char* field) {
  return options.is_null(field) ? std::span<const float>() : to_span<float>(options.value(field), field);
}

Napi::Value create_gate(const Napi::CallbackInfo& info) {
  const Fields options(info[0], "");
  const uint64_t experts = options.integer("experts", 1, experts_max);
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const SlabRef weight = slab_of_rows(options.value("weight"), "weight", experts, hidden, sizeof(float));
  SharedChoice shared;
  // Keeps the gate's memory until it is read.
  SlabRef shared_gate;
  if (options.has("shared")) {
    const Fields given = options.fields("shared");
    shared.weights = to_span<float>(given.value("weights"), given.name("weights"));
    if (!given.is_null("gate")) {
      shared_gate = slab_of_rows(given.value("gate"), given.name("gate"), 1, hidden, sizeof(float));
      shared.gate = floats_of(shared_gate);
    }
  }
  GateExtras extras;
  if (options.has("expertScale")) extras.expert_scale = to_span<float>(options.value("expertScale"), "expertScale");
  if (options.has("tokenExperts")) extras.token_experts = to_span<uint32_t>(options.value("tokenExperts"), "tokenExperts");
  if (options.has("isolated")) {
    const Fields isolated = options.fields("isolated");
    extras.isolated.experts = isolated.integer("experts", 1, experts_max);
    extras.isolated.token_ids = to_span<uint32_t>(isolated.value("tokenIds"), isolated.name("tokenIds"));
  }
  if (options.has("rowEpsilon")) extras.row_epsilon = static_cast<float>(options.number("rowEpsilon"));
  return GateHandle::create(
      info.Env(), std::make_shared<const Gate>(floats_of(weight), experts, hidden, bias_of(options, "logitBias"),
                                               bias_of(options, "selectionBias"),
                                               to_routing(options.fields("routing")), shared, extras));
}

}  // namespace

std::vector<GateHandle::PropertyDescriptor> GateHandle::properties() {
  return {
      InstanceAccessor<&GateHandle::experts>("experts"),
      InstanceAccessor<&GateHandle::hidden>("hidden"),
      InstanceMethod("release", &GateHandle::release),
  };
}

Napi::Value GateHandle::experts(const Napi::CallbackInfo& info) {
  return guard(info, "experts", [&] { return Napi::Number::New(info.Env(), native()->experts()); });
}

Napi::Value GateHandle::hidden(const Napi::CallbackInfo& info) {
  return guard(info, "hidden", [&] { return Napi::Number::New(info.Env(), native()->hidden()); });
}

RoutingSpec to_routing(const Fields& fields) {
  RoutingSpec routing;
  routing.top_k = fields.integer("topK", 1, top_k_max);
  constexpr RoutingSpec::Score scores[] = {RoutingSpec::Score::softmax, RoutingSpec::Score::sigmoid,
                                           RoutingSpec::Score::sqrt_softplus, RoutingSpec::Score::sparse_mixer};
  routing.score = scores[fields.choice("score", {"softmax", "sigmoid", "sqrt-softplus", "sparse-mixer"})];
  routing.renormalise = fields.boolean("renormalise");
  routing.scale = static_cast<float>(fields.number("scale"));
  if (fields.has("normPower")) routing.norm_power = fields.integer("normPower", 1, 2);
  if (fields.has("logitCap")) routing.logit_cap = static_cast<float>(fields.number("logitCap"));
  if (fields.has("mixerReach")) routing.mixer_reach = static_cast<float>(fields.number("mixerReach"));
  routing.groups = fields.integer("groups", 1, experts_max);
  routing.groups_chosen = fields.integer("groupsChosen", 1, experts_max);
  routing.group_score =
      fields.choice("groupScore", {"max", "top2"}) == 0 ? RoutingSpec::GroupScore::max : RoutingSpec::GroupScore::top2;
  routing.masked = fields.choice("masked", {"zero", "negative-infinity"}) == 0
                       ? RoutingSpec::Masked::zero
                       : RoutingSpec::Masked::negative_infinity;
  routing.weight_on =
      fields.choice("weightOn", {"output", "input"}) == 0 ? RoutingSpec::WeightOn::output : RoutingSpec::WeightOn::input;
  return routing;
}

void export_gate(Napi::Env env, Napi::Object exports) {
  GateHandle::define(env);
  export_function(exports, "createGate", create_gate);
}

}  // namespace switchyard::addon
