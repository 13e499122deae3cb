#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "model/weight_file.h"

namespace switchyard::addon {

/** `WeightFile` of native/index.ts. */
class WeightFileHandle : public Handle<WeightFileHandle, std::shared_ptr<const WeightFile>> {
 public:
  static constexpr HandleKind kind = HandleKind::weight_file;
  static constexpr const char* name = "WeightFile";
  static constexpr napi_type_tag tag = {0x4e2a9c7710d35b84, 0xa6f08e2b7c914d53};
  static std::vector<PropertyDescriptor> properties();

  explicit WeightFileHandle(const Napi::CallbackInfo& info);

 private:
  Napi::Value path(const Napi::CallbackInfo& info);
  Napi::Value byte_length(const Napi::CallbackInfo& info);
  Napi::Value identity(const Napi::CallbackInfo& info);
  Napi::Value changed_milliseconds(const Napi::CallbackInfo& info);
  Napi::Value require_unchanged(const Napi::CallbackInfo& info);

  /** After the handle is given up too. */
  const std::string path_;
  const double byte_length_;
};

}  // namespace switchyard::addon
