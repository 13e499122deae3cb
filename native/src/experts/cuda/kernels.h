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

/** landing [count, hidden]: row i is copied from rows[i], host memory that is registered with the device. */
void fetch_rows(const uint16_t* const* rows, size_t count, size_t hidden, uint16_t* landing, cudaStream_t stream);

/** Sets `differs` to 1 if any of `elements` elements differs. */
void compare(const uint16_t* first, const uint16_t* second, size_t elements, uint32_t* differs, cudaStream_t stream);

/** The activation of `rows` intermediate rows, in place; padding becomes zero even where a row is not finite. */
void activate_rows(uint16_t* intermediate, const Shape& shape, size_t rows, cudaStream_t stream);

}  // namespace switchyard::cuda
