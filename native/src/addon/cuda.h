#pragma once

#include <napi.h>

#include "experts/cuda/module.h"

namespace switchyard::addon {

/** The CUDA backend beside the addon. Throws INVALID_ARGUMENT, saying why, if it is not built or cannot be loaded. */
const cuda::Module& cuda_module();

/** `CudaDescription` of native/index.ts; null if the addon was built without CUDA. */
Napi::Value describe_cuda(Napi::Env env);

}  // namespace switchyard::addon
