#include "addon/cuda.h"

#include <string>

#include "addon/module_path.h"
#include "runtime/error.h"
#include "runtime/module_file.h"

namespace switchyard::addon {
namespace {

const ModuleFile& module_file() {
  static const ModuleFile file(module_path("switchyard_cuda.so"), "switchyard_cuda");
  return file;
}

}  // namespace

const cuda::Module& cuda_module() {
  const ModuleFile& file = module_file();
  if (!file.present()) throw_invalid("device", std::string("cuda"), "cpu, because this build is without CUDA");
  const auto* const module = file.module<cuda::Module>();
  if (!module) throw_invalid("device", std::string("cuda"), "cpu, because CUDA cannot be loaded: " + file.problem());
  return *module;
}

Napi::Value describe_cuda(Napi::Env env) {
  const ModuleFile& file = module_file();
  if (!file.present()) return env.Null();
  const auto* const module = file.module<cuda::Module>();
  const cuda::Description found = module ? module->describe() : cuda::Description{.problem = file.problem()};
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
