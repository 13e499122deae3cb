#include "addon/cuda.h"

#include <dlfcn.h>

#include <string>

#include "runtime/error.h"

namespace switchyard::addon {
namespace {

/** The folder of this addon, which the module lies in too. */
std::string own_folder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0) return ".";
  const std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/'));
}

const cuda::ModuleFile& module_file() {
  static const cuda::ModuleFile file(own_folder() + "/switchyard_cuda.so");
  return file;
}

}  // namespace

const cuda::Module& cuda_module() {
  const cuda::ModuleFile& file = module_file();
  if (!file.present()) throw_invalid("device", std::string("cuda"), "cpu, because this build is without CUDA");
  if (file.module() == nullptr) throw_invalid("device", std::string("cuda"), "cpu, because CUDA cannot be loaded: " + file.problem());
  return *file.module();
}

Napi::Value describe_cuda(Napi::Env env) {
  const cuda::ModuleFile& file = module_file();
  if (!file.present()) return env.Null();
  const cuda::Description found =
      file.module() != nullptr ? file.module()->describe() : cuda::Description{.problem = file.problem()};
  auto result = Napi::Object::New(env);
  const auto text = [env](const std::string& value) -> Napi::Value {
    return value.empty() ? env.Null() : Napi::String::New(env, value).As<Napi::Value>();
  };
  result.Set("runtime", text(found.runtime));
  result.Set("driver", text(found.driver));
  result.Set("problem", text(found.problem));
  auto devices = Napi::Array::New(env, found.devices.size());
  for (uint32_t i = 0; i < found.devices.size(); ++i) {
    auto device = Napi::Object::New(env);
    device.Set("name", found.devices[i].name);
    device.Set("capability", found.devices[i].capability);
    device.Set("memoryBytes", static_cast<double>(found.devices[i].memory_bytes));
    devices.Set(i, device);
  }
  result.Set("devices", devices);
  return result;
}

}  // namespace switchyard::addon
