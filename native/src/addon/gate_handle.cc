#include "addon/gate_handle.h"

#include "addon/parallel.h"
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
  return GateHandle::create(
      info.Env(), std::make_shared<const Gate>(floats_of(weight), experts, hidden, bias_of(options, "logitBias"),
                                               bias_of(options, "selectionBias"),
                                               to_routing(options.fields("routing"))));
}

void prepare_gate_rows(const Napi::CallbackInfo& info, Operation& operation) {
  struct Choice {
    std::vector<uint32_t> experts;
    std::vector<float> weights;
    std::vector<uint32_t> counts;
  };
  const Fields options(info[0], "");
  const std::shared_ptr<const Gate> gate = GateHandle::of(options.value("gate"), "gate");
  const uint64_t row_count = options.integer("rowCount", 1, rows_max);
  const SlabRef rows = slab_of_rows(options.value("rows"), "rows", row_count, gate->hidden());
  const auto bias = held_span_or_null<float>(operation, options.value("bias"), "bias", gate->experts());
  const auto choice = std::make_shared<Choice>();
  operation.run = [=] {
    const size_t top_k = gate->routing().top_k;
    choice->experts.resize(row_count * top_k);
    choice->weights.resize(row_count * top_k);
    choice->counts.resize(gate->experts());
    for_rows(row_count, gate->hidden(), [&](size_t first, size_t count) {
      gate->route(rows_of(rows) + first * gate->hidden(), count, bias, choice->experts.data() + first * top_k,
                  choice->weights.data() + first * top_k);
    });
    count_experts(choice->experts, choice->counts);
  };
  operation.result = [choice](Napi::Env env) {
    auto result = Napi::Object::New(env);
    result.Set("experts", to_array<uint32_t>(env, choice->experts));
    result.Set("weights", to_array<float>(env, choice->weights));
    result.Set("counts", to_array<uint32_t>(env, choice->counts));
    return result;
  };
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
  routing.score = fields.choice("score", {"softmax", "sigmoid"}) == 0 ? RoutingSpec::Score::softmax
                                                                      : RoutingSpec::Score::sigmoid;
  routing.renormalise = fields.boolean("renormalise");
  routing.scale = static_cast<float>(fields.number("scale"));
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
  export_operation(exports, "gateRows", prepare_gate_rows);
}

}  // namespace switchyard::addon
