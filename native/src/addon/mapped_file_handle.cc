#include "addon/mapped_file_handle.h"

namespace switchyard::addon {

std::vector<MappedFileHandle::PropertyDescriptor> MappedFileHandle::properties() {
  return {
      InstanceAccessor<&MappedFileHandle::path>("path"),
      InstanceAccessor<&MappedFileHandle::byte_length>("byteLength"),
      InstanceMethod("close", &MappedFileHandle::release),
  };
}

MappedFileHandle::MappedFileHandle(const Napi::CallbackInfo& info)
    : Handle(info), path_(native()->path()), byte_length_(static_cast<double>(native()->size())) {}

Napi::Value MappedFileHandle::path(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), path_); }

Napi::Value MappedFileHandle::byte_length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), byte_length_);
}

}  // namespace switchyard::addon
