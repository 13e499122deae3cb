#pragma once

#include <memory>
#include <vector>

#include "addon/handle.h"
#include "experts/backend.h"
#include "runtime/serial_queue.h"

namespace switchyard::addon {

/** A backend, and a thread that loads experts into it, so that loading does not hold up calls. */
struct Device {
  /** The backend hears of the process's slabs from now on. Throws INVALID_ARGUMENT if another one does. */
  explicit Device(std::unique_ptr<ExpertBackend> backend);
  ~Device();

  /** Before the queue: it ends before what it calls. */
  std::unique_ptr<ExpertBackend> backend;
  SerialQueue loading{"loading"};
};

/** Weights that are NaN or infinite in BF16, by matrix. */
struct NonFiniteWeights {
  size_t gate = 0;
  size_t up = 0;
  size_t down = 0;
  size_t latent_input = 0;
  size_t latent_output = 0;
  size_t gate_bias = 0;
  size_t up_bias = 0;
  size_t down_bias = 0;
  size_t latent_bias = 0;
  size_t extra_bias = 0;
};

/** An expert's weights, and the device that must outlive them. */
struct LoadedExpert {
  std::shared_ptr<Device> device;
  std::unique_ptr<Expert> expert;
  NonFiniteWeights non_finite;
};

/** `Expert` of native/index.ts. */
class ExpertHandle : public Handle<ExpertHandle, std::shared_ptr<const LoadedExpert>> {
 public:
  static constexpr HandleKind kind = HandleKind::expert;
  static constexpr const char* name = "Expert";
  static constexpr napi_type_tag tag = {0x72b95ac41e0d8f36, 0xd81c63b5094ea72f};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;

 private:
  Napi::Value bytes(const Napi::CallbackInfo& info);
  Napi::Value hidden(const Napi::CallbackInfo& info);
  Napi::Value ffn(const Napi::CallbackInfo& info);
  Napi::Value non_finite(const Napi::CallbackInfo& info);
};

/** `ExpertBackend` of native/index.ts. */
class BackendHandle : public Handle<BackendHandle, std::shared_ptr<Device>> {
 public:
  static constexpr HandleKind kind = HandleKind::expert_backend;
  static constexpr const char* name = "ExpertBackend";
  static constexpr napi_type_tag tag = {0x5f8e21d3c6a0947b, 0x30ab7fe94c5d1286};
  static std::vector<PropertyDescriptor> properties();

  using Handle::Handle;

 private:
  Napi::Value description(const Napi::CallbackInfo& info);
  Napi::Value load(const Napi::CallbackInfo& info);
  Napi::Value forward(const Napi::CallbackInfo& info);
  Napi::Value figures(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
};

/** The activation of an ExpertSource of native/index.ts. */
Activation to_activation(const Fields& fields);
GluForm to_glu(const Fields& fields);

/** The functions createCpuBackend and createCudaBackend. */
void export_experts(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
