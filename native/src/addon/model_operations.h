#pragma once

#include <napi.h>

#include "addon/arguments.h"
#include "addon/parallel.h"
#include "model/tensor.h"

namespace switchyard::addon {

/** A TensorSource of native/index.ts, checked against its file. */
TensorSource to_tensor(const Fields& fields);

/** read_elements over the pool. */
template <typename Out>
void read_elements_in_parallel(const TensorSource& source, size_t first, size_t count, Out* out) {
  constexpr size_t elements_per_range = 256 * 1024;
  for_ranges(count, elements_per_range, [&](size_t begin, size_t elements) {
    read_elements(source, first + begin, elements, out + begin);
  });
}

/** The functions openWeightFile, readTensor, readFloats and synthesizeTokens. */
void export_model_operations(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
