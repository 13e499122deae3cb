#include <cuda_bf16.h>

#include "experts/cuda/device.h"
#include "experts/cuda/kernels.h"

namespace switchyard::cuda {
namespace {

constexpr unsigned block_threads = 256;

/** Eight BF16 elements, read and written by one access of 16 bytes. */
struct alignas(16) Vector {
  __nv_bfloat16 elements[vector_elements];
};
static_assert(sizeof(Vector) == 16);

/** The vector of a row that this thread works on, and the row. A row has as many blocks as its vectors need. */
__device__ size_t own_vector() { return blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; }

dim3 grid_of(size_t vectors, size_t rows) {
  return {static_cast<unsigned>((vectors + block_threads - 1) / block_threads), static_cast<unsigned>(rows)};
}

template <bool aligned>
__global__ void gather(const uint16_t* landing, const uint32_t* sources, const float* weights, Shape shape, uint16_t* out) {
  const size_t vector = own_vector();
  const size_t row = blockIdx.y;
  const size_t column = vector * vector_elements;
  if (column >= shape.hidden_padded()) return;
  const auto* const source = reinterpret_cast<const __nv_bfloat16*>(landing) + sources[row] * shape.hidden + column;
  Vector values;
  if constexpr (aligned) {
    values = *reinterpret_cast<const Vector*>(source);
  } else {
    const size_t count = columns_within(column, shape.hidden);
    for (size_t i = 0; i < vector_elements; ++i) values.elements[i] = i < count ? source[i] : __float2bfloat16_rn(0.0f);
  }
  if (weights != nullptr) {
    const float weight = weights[row];
    // Padding stays zero even if the weight is not finite.
    const size_t count = columns_within(column, shape.hidden);
    for (size_t i = 0; i < count; ++i) values.elements[i] = __float2bfloat16_rn(__bfloat162float(values.elements[i]) * weight);
  }
  reinterpret_cast<Vector*>(out)[row * (shape.hidden_padded() / vector_elements) + vector] = values;
}

template <bool gated>
__global__ void activate(uint16_t* intermediate, Shape shape) {
  const size_t vector = own_vector();
  const size_t column = vector * vector_elements;
  if (column >= shape.ffn_padded()) return;
  auto* const line = reinterpret_cast<Vector*>(intermediate) + blockIdx.y * (shape.intermediate() / vector_elements);
  const Vector first = line[vector];
  Vector second;
  if constexpr (gated) second = line[vector + shape.ffn_padded() / vector_elements];
  Vector result;
  const size_t count = columns_within(column, shape.ffn);
#pragma unroll
  for (size_t i = 0; i < vector_elements; ++i) {
    const float value = __bfloat162float(first.elements[i]);
    float activated;
    if constexpr (gated) activated = swiglu(value, __bfloat162float(second.elements[i]));
    else activated = gelu(value);
    result.elements[i] = __float2bfloat16_rn(i < count ? activated : 0.0f);
  }
  line[vector] = result;
}

}  // namespace

void gather_rows(const uint16_t* landing, const uint32_t* sources, const float* weights, const Shape& shape, size_t rows,
                 uint16_t* out, cudaStream_t stream) {
  const dim3 grid = grid_of(shape.hidden_padded() / vector_elements, rows);
  if (shape.hidden == shape.hidden_padded()) gather<true><<<grid, block_threads, 0, stream>>>(landing, sources, weights, shape, out);
  else gather<false><<<grid, block_threads, 0, stream>>>(landing, sources, weights, shape, out);
  check(cudaGetLastError(), "to gather rows");
}

void activate_rows(uint16_t* intermediate, const Shape& shape, size_t rows, cudaStream_t stream) {
  const dim3 grid = grid_of(shape.ffn_padded() / vector_elements, rows);
  if (shape.gated) activate<true><<<grid, block_threads, 0, stream>>>(intermediate, shape);
  else activate<false><<<grid, block_threads, 0, stream>>>(intermediate, shape);
  check(cudaGetLastError(), "to run the activation");
}

}  // namespace switchyard::cuda
