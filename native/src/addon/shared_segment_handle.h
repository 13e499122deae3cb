#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "memory/shared_segment.h"

namespace switchyard::addon {

/** `SharedSegment` of native/index.ts. */
class SharedSegmentHandle : public Handle<SharedSegmentHandle, std::shared_ptr<const SharedSegment>> {
 public:
  static constexpr HandleKind kind = HandleKind::shared_segment;
  static constexpr const char* name = "SharedSegment";
  static constexpr napi_type_tag tag = {0x1c7e5b90aa3d4f68, 0xb2d94e07f1c8365a};
  static std::vector<PropertyDescriptor> properties();

  explicit SharedSegmentHandle(const Napi::CallbackInfo& info) : Handle(info) {}

 private:
  Napi::Value byte_length(const Napi::CallbackInfo& info);
  Napi::Value is_unlinked(const Napi::CallbackInfo& info);
};

/** openSharedSegment, narrowRows, widenRows, readSegment and writeSegment. */
void export_client_rows(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
