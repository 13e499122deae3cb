#include "experts/cuda/cuda_backend.h"

/** The one function that switchyard_cuda.so exports: see ModuleFile. */
extern "C" __attribute__((visibility("default"))) const switchyard::cuda::Module* switchyard_cuda() {
  static const switchyard::cuda::Module module{
      .describe = &switchyard::cuda::describe_devices,
      .create = [](int device) { return switchyard::cuda::create_backend(device); },
  };
  return &module;
}
