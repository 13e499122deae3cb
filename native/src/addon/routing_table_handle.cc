#include "addon/routing_table_handle.h"

#include <optional>

#include "addon/process.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t layers_max = 65536;

Napi::Value create_routing_table(const Napi::CallbackInfo& info) {
  const Fields options(info[0], "");
  const uint64_t tokens = options.integer("tokens", 1, rows_max);
  const uint64_t top_k = options.integer("topK", 1, top_k_max);
  const auto experts = to_span<uint32_t>(options.value("experts"), "experts");
  if (experts.empty() || experts.size() > layers_max) {
    throw_invalid("experts.length", experts.size(), "1 to " + std::to_string(layers_max) + " layers");
  }
  SlabRef memory = arena().allocate(RoutingTable::bytes_for(tokens, top_k, experts.size()));
  return RoutingTableHandle::create(
      info.Env(), std::make_shared<RoutingTable>(std::move(memory), tokens, top_k,
                                                 std::vector<uint32_t>(experts.begin(), experts.end())));
}

/** The routing of some tokens of a table. */
struct Part {
  std::shared_ptr<RoutingTable> table;
  uint64_t first;
  std::span<uint8_t> experts;
  std::span<uint8_t> weights;
};

Part to_part(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const Part part{RoutingTableHandle::of(options.value("table"), "table"), options.integer("first", 0, rows_max),
                  to_span<uint8_t>(options.value("experts"), "experts"),
                  to_span<uint8_t>(options.value("weights"), "weights")};
  operation.hold(options.value("experts"));
  operation.hold(options.value("weights"));
  const uint64_t token_bytes = part.table->stride() * sizeof(uint32_t);
  if (part.experts.size() % token_bytes != 0) {
    throw_invalid("experts.length", part.experts.size(),
                  "multiples of a token's " + std::to_string(token_bytes) + " bytes");
  }
  if (part.weights.size() != part.experts.size()) {
    throw_invalid("weights.length", part.weights.size(), std::to_string(part.experts.size()));
  }
  const uint64_t count = part.experts.size() / token_bytes;
  if (part.first + count > part.table->tokens()) {
    throw_invalid("first", part.first,
                  "tokens that leave room for " + std::to_string(count) + " of the table's " +
                      std::to_string(part.table->tokens()));
  }
  return part;
}

Napi::Value to_fault(Napi::Env env, const std::optional<RoutingFault>& found) {
  if (!found) return env.Null();
  auto fault = Napi::Object::New(env);
  fault.Set("field", found->field == RoutingFault::Field::experts ? "experts" : "weights");
  fault.Set("index", static_cast<double>(found->index));
  fault.Set("value", found->value);
  return fault;
}

void prepare_write(const Napi::CallbackInfo& info, Operation& operation) {
  const Part part = to_part(info, operation);
  const auto fault = std::make_shared<std::optional<RoutingFault>>();
  operation.run = [=] { *fault = part.table->write(part.first, part.experts, part.weights); };
  operation.result = [fault](Napi::Env env) { return to_fault(env, *fault); };
}

void prepare_read(const Napi::CallbackInfo& info, Operation& operation) {
  const Part part = to_part(info, operation);
  operation.run = [=] { part.table->read(part.first, part.experts, part.weights); };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

}  // namespace

std::vector<RoutingTableHandle::PropertyDescriptor> RoutingTableHandle::properties() {
  return {InstanceMethod("release", &RoutingTableHandle::release)};
}

void export_routing_table(Napi::Env env, Napi::Object exports) {
  RoutingTableHandle::define(env);
  export_function(exports, "createRoutingTable", create_routing_table);
  export_operation(exports, "writeRouting", prepare_write);
  export_operation(exports, "readRouting", prepare_read);
}

}  // namespace switchyard::addon
