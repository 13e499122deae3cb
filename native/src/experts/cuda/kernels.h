#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "experts/cuda/layout.h"

namespace switchyard::cuda {

/**
 * out [rows, hidden_padded]: row i is row `sources[i]` of `landing` [.., hidden], times `weights[i]` and rounded to
 * BF16 if there are weights; padding becomes zero.
 */
void gather_rows(const uint16_t* landing, const uint32_t* sources, const float* weights, const Shape& shape, size_t rows,
                 uint16_t* out, cudaStream_t stream);

/** The activation of `rows` intermediate rows, in place; padding becomes zero even where a row is not finite. */
void activate_rows(uint16_t* intermediate, const Shape& shape, size_t rows, cudaStream_t stream);

}  // namespace switchyard::cuda
