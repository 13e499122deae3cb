#pragma once

#include <napi.h>

#include "addon/arguments.h"
#include "model/tensor.h"

namespace switchyard::addon {

/** A TensorSource of native/index.ts, checked against its file. */
TensorSource to_tensor(const Fields& fields);

/** read_elements over the pool. */
void read_elements_in_parallel(const TensorSource& source, size_t first, size_t count, uint16_t* out);

/** The functions openMappedFile, readTensor and synthesizeTokens. */
void export_model_operations(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
