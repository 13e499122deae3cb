// What the kernels of experts/cuda/kernels.cu compute.
#include "experts/cuda/kernels.h"

#include <algorithm>

#include "experts/cuda/device.h"
#include "fake.h"
#include "kernels/bf16.h"

namespace switchyard::cuda {

void gather_rows(const uint16_t* landing, const uint32_t* sources, const float* weights, const Shape& shape, size_t rows, uint16_t* out,
                 cudaStream_t stream) {
  fake_cuda::launch(stream, "a gather", [=](const fake_cuda::Moment& moment) {
    if (!fake_cuda::reads(moment, sources, rows * sizeof *sources)) return;
    if (weights != nullptr && !fake_cuda::reads(moment, weights, rows * sizeof *weights)) return;
    const auto [least, most] = std::minmax_element(sources, sources + rows);
    const size_t read = (*most - *least + 1) * shape.hidden * sizeof *landing;
    if (!fake_cuda::reads(moment, landing + *least * shape.hidden, read)) return;
    if (!fake_cuda::writes(moment, out, rows * shape.hidden_padded() * sizeof *out)) return;
    for (size_t row = 0; row < rows; ++row) {
      const uint16_t* const source = landing + sources[row] * shape.hidden;
      uint16_t* const target = out + row * shape.hidden_padded();
      for (size_t column = 0; column < shape.hidden_padded(); ++column) {
        const uint16_t value = column < shape.hidden ? source[column] : 0;
        const bool weighs = weights != nullptr && column < shape.hidden;
        target[column] = weighs ? float_to_bf16(bf16_to_float(value) * weights[row]) : value;
      }
    }
  });
  check(cudaGetLastError(), "to gather rows");
}

void fetch_rows(const uint16_t* const* rows, size_t count, size_t hidden, uint16_t* landing, cudaStream_t stream) {
  fake_cuda::launch(stream, "a fetch", [=](const fake_cuda::Moment& moment) {
    if (!fake_cuda::reads(moment, rows, count * sizeof *rows)) return;
    if (!fake_cuda::writes(moment, landing, count * hidden * sizeof *landing)) return;
    for (size_t row = 0; row < count; ++row) {
      if (fake_cuda::reads_host(moment, rows[row], hidden * sizeof *landing)) std::copy_n(rows[row], hidden, landing + row * hidden);
    }
  });
  check(cudaGetLastError(), "to fetch rows");
}

void compare(const uint16_t* first, const uint16_t* second, size_t elements, uint32_t* differs, cudaStream_t stream) {
  fake_cuda::launch(stream, "a comparison", [=](const fake_cuda::Moment& moment) {
    const size_t bytes = elements * sizeof *first;
    if (!fake_cuda::reads(moment, first, bytes) || !fake_cuda::reads(moment, second, bytes)) return;
    if (!fake_cuda::writes(moment, differs, sizeof *differs)) return;
    if (!std::equal(first, first + elements, second)) *differs = 1;
  });
  check(cudaGetLastError(), "to compare rows");
}

void activate_rows(uint16_t* intermediate, const Shape& shape, size_t rows, cudaStream_t stream) {
  fake_cuda::launch(stream, "an activation", [=](const fake_cuda::Moment& moment) {
    if (!fake_cuda::writes(moment, intermediate, rows * shape.intermediate() * sizeof *intermediate)) return;
    for (size_t row = 0; row < rows; ++row) {
      uint16_t* const line = intermediate + row * shape.intermediate();
      for (size_t column = 0; column < shape.ffn_padded(); ++column) {
        const float first = bf16_to_float(line[column]);
        const float value = shape.gated ? swiglu(first, bf16_to_float(line[column + shape.ffn_padded()])) : gelu(first);
        line[column] = column < shape.ffn ? float_to_bf16(value) : 0;
      }
    }
  });
  check(cudaGetLastError(), "to run the activation");
}

}  // namespace switchyard::cuda
