#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "addon/handle.h"
#include "kernels/group.h"

namespace switchyard::addon {

/** What combining needs to know of routed rows. */
struct Routed {
  size_t row_count;
  size_t top_k;
  std::vector<uint32_t> experts;
  /** [row_count, top_k] */
  std::vector<float> weights;
  std::vector<GroupPlan> groups;
};

/** `RoutedRows` of native/index.ts. */
class RoutedHandle : public Handle<RoutedHandle, std::shared_ptr<const Routed>> {
 public:
  static constexpr HandleKind kind = HandleKind::routed_rows;
  static constexpr const char* name = "RoutedRows";
  static constexpr napi_type_tag tag = {0x2f9d63b80ec74a15, 0xe41b5c7a6093d28f};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;
};

/** The function routeRows. */
void export_routing(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
