#include <cuda_bf16.h>

#include <algorithm>

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

/**
 * A fetch has 8 * 4 * 128 * 4 accesses of 16 bytes under way, 256 KiB: more than a link of 64 GB/s moves in its latency of about two
 * microseconds. The blocks are few, for each keeps a multiprocessor from products.
 */
constexpr unsigned fetch_blocks = 8;
constexpr unsigned fetch_rows_per_block = 4;
constexpr unsigned fetch_threads_per_row = 128;
constexpr unsigned fetch_vectors = 4;

__global__ void fetch(const uint16_t* const* rows, size_t count, size_t hidden, uint16_t* landing) {
  for (size_t row = blockIdx.x * blockDim.y + threadIdx.y; row < count; row += gridDim.x * blockDim.y) {
    const uint16_t* const source = rows[row];
    uint16_t* const target = landing + row * hidden;
    const bool aligned = hidden % vector_elements == 0 && reinterpret_cast<uintptr_t>(source) % sizeof(Vector) == 0;
    if (!aligned) {
      for (size_t i = threadIdx.x; i < hidden; i += blockDim.x) target[i] = source[i];
      continue;
    }
    const auto* const from = reinterpret_cast<const Vector*>(source);
    auto* const to = reinterpret_cast<Vector*>(target);
    const size_t vectors = hidden / vector_elements;
    for (size_t first = threadIdx.x; first < vectors; first += blockDim.x * fetch_vectors) {
      Vector values[fetch_vectors];
#pragma unroll
      for (unsigned i = 0; i < fetch_vectors; ++i) {
        if (first + i * blockDim.x < vectors) values[i] = from[first + i * blockDim.x];
      }
#pragma unroll
      for (unsigned i = 0; i < fetch_vectors; ++i) {
        if (first + i * blockDim.x < vectors) to[first + i * blockDim.x] = values[i];
      }
    }
  }
}

__global__ void find_difference(const uint16_t* first, const uint16_t* second, size_t elements, uint32_t* differs) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  bool found = false;
  for (size_t i = own_vector(); i < elements; i += step) found |= first[i] != second[i];
  if (found) *differs = 1;
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

void fetch_rows(const uint16_t* const* rows, size_t count, size_t hidden, uint16_t* landing, cudaStream_t stream) {
  fetch<<<fetch_blocks, dim3(fetch_threads_per_row, fetch_rows_per_block), 0, stream>>>(rows, count, hidden, landing);
  check(cudaGetLastError(), "to fetch rows");
}

void compare(const uint16_t* first, const uint16_t* second, size_t elements, uint32_t* differs, cudaStream_t stream) {
  constexpr size_t blocks_max = 1024;
  const size_t blocks = std::min((elements + block_threads - 1) / block_threads, blocks_max);
  find_difference<<<static_cast<unsigned>(blocks), block_threads, 0, stream>>>(first, second, elements, differs);
  check(cudaGetLastError(), "to compare rows");
}

void activate_rows(uint16_t* intermediate, const Shape& shape, size_t rows, cudaStream_t stream) {
  const dim3 grid = grid_of(shape.ffn_padded() / vector_elements, rows);
  if (shape.gated) activate<true><<<grid, block_threads, 0, stream>>>(intermediate, shape);
  else activate<false><<<grid, block_threads, 0, stream>>>(intermediate, shape);
  check(cudaGetLastError(), "to run the activation");
}

}  // namespace switchyard::cuda
