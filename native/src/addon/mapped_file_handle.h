#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "model/mapped_file.h"

namespace switchyard::addon {

/** `MappedFile` of native/index.ts. */
class MappedFileHandle : public Handle<MappedFileHandle, std::shared_ptr<const MappedFile>> {
 public:
  static constexpr HandleKind kind = HandleKind::mapped_file;
  static constexpr const char* name = "MappedFile";
  static constexpr napi_type_tag tag = {0x4e2a9c7710d35b84, 0xa6f08e2b7c914d53};
  static std::vector<PropertyDescriptor> properties();

  explicit MappedFileHandle(const Napi::CallbackInfo& info);

 private:
  Napi::Value path(const Napi::CallbackInfo& info);
  Napi::Value byte_length(const Napi::CallbackInfo& info);

  std::string path_;
  double byte_length_;
};

}  // namespace switchyard::addon
