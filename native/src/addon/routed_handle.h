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
  size_t expert_count;
  std::vector<uint32_t> experts;
  /** [row_count, top_k] */
  std::vector<float> weights;
  /** Whether groups carry weights. */
  bool weighted;
  /** Changed on the JS thread alone; what an operation reads, it has taken before. Null: other groups have taken its place. */
  std::vector<std::shared_ptr<const GroupPlan>> groups;
};

/** `RoutedRows` of native/index.ts. */
class RoutedHandle : public Handle<RoutedHandle, std::shared_ptr<Routed>> {
 public:
  static constexpr HandleKind kind = HandleKind::routed_rows;
  static constexpr const char* name = "RoutedRows";
  static constexpr napi_type_tag tag = {0x2f9d63b80ec74a15, 0xe41b5c7a6093d28f};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;
};

/** The functions routeRows and regroupRows. */
void export_routing(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
