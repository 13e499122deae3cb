#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "kernels/gate.h"

namespace switchyard::addon {

/** `GateWeights` of native/index.ts. */
class GateHandle : public Handle<GateHandle, std::shared_ptr<const Gate>> {
 public:
  static constexpr HandleKind kind = HandleKind::gate_weights;
  static constexpr const char* name = "GateWeights";
  static constexpr napi_type_tag tag = {0xc3704d1f25e8b96a, 0x17d9a04c83f2be65};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;

 private:
  Napi::Value experts(const Napi::CallbackInfo& info);
  Napi::Value hidden(const Napi::CallbackInfo& info);
};

/** A RoutingSpec of native/index.ts; whether its fields fit together is for its user to check. */
RoutingSpec to_routing(const Fields& fields);

/** The function createGate. */
void export_gate(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
