#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "kernels/routing_table.h"

namespace switchyard::addon {

/** `RoutingTable` of native/index.ts. */
class RoutingTableHandle : public Handle<RoutingTableHandle, std::shared_ptr<RoutingTable>> {
 public:
  static constexpr HandleKind kind = HandleKind::routing_table;
  static constexpr const char* name = "RoutingTable";
  static constexpr napi_type_tag tag = {0x5be0a94c7d1f4632, 0xa86c17e3940bd25f};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;
};

/** The functions createRoutingTable, writeRouting and readRouting. */
void export_routing_table(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
