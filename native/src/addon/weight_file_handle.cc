#include "addon/weight_file_handle.h"

namespace switchyard::addon {

std::vector<WeightFileHandle::PropertyDescriptor> WeightFileHandle::properties() {
  return {
      InstanceAccessor<&WeightFileHandle::path>("path"),
      InstanceAccessor<&WeightFileHandle::byte_length>("byteLength"),
      InstanceAccessor<&WeightFileHandle::identity>("identity"),
      InstanceAccessor<&WeightFileHandle::changed_milliseconds>("changedMs"),
      InstanceMethod<&WeightFileHandle::require_unchanged>("requireUnchanged"),
      InstanceMethod("close", &WeightFileHandle::release),
  };
}

WeightFileHandle::WeightFileHandle(const Napi::CallbackInfo& info)
    : Handle(info), path_(native()->path()), byte_length_(static_cast<double>(native()->size())) {}

Napi::Value WeightFileHandle::path(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), path_); }

Napi::Value WeightFileHandle::byte_length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), byte_length_);
}

Napi::Value WeightFileHandle::identity(const Napi::CallbackInfo& info) {
  return guard(info, "identity", [&] { return Napi::String::New(info.Env(), native()->identity()); });
}

Napi::Value WeightFileHandle::changed_milliseconds(const Napi::CallbackInfo& info) {
  return guard(info, "changedMs", [&] { return Napi::Number::New(info.Env(), native()->changed_milliseconds()); });
}

Napi::Value WeightFileHandle::require_unchanged(const Napi::CallbackInfo& info) {
  return guard(info, "requireUnchanged", [&] {
    native()->require_unchanged();
    return info.Env().Undefined();
  });
}

}  // namespace switchyard::addon
