#pragma once

#include <cmath>
#include <cstddef>

#ifdef __CUDACC__
#define SWITCHYARD_ANY_SIDE __host__ __device__
#else
#define SWITCHYARD_ANY_SIDE
#endif

namespace switchyard::cuda {

/** Elements of one 16-byte access. Sizes are padded to it, so that every row begins at 16 bytes. */
constexpr size_t vector_elements = 8;

SWITCHYARD_ANY_SIDE constexpr size_t padded(size_t elements) {
  return (elements + vector_elements - 1) / vector_elements * vector_elements;
}

/** The most rows of a batch. Two full calls of a worker: large enough for the tensor cores, small enough to overlap. */
#ifdef SWITCHYARD_BATCH_ROWS_MAX
constexpr size_t batch_rows_max = SWITCHYARD_BATCH_ROWS_MAX;
#else
constexpr size_t batch_rows_max = 2048;
#endif

/**
 * Memory of one shape of experts, in BF16 elements. The first product's weights are [intermediate, hidden_padded]: the
 * rows of gate, if there is one, padded with zeros, then those of up. The second's are [hidden_padded, ffn_padded].
 * An intermediate row has the sums of gate and up side by side; what the activation gives takes the place of the first.
 */
struct Shape {
  size_t hidden;
  size_t ffn;
  bool gated;

  SWITCHYARD_ANY_SIDE constexpr size_t hidden_padded() const { return padded(hidden); }
  SWITCHYARD_ANY_SIDE constexpr size_t ffn_padded() const { return padded(ffn); }
  SWITCHYARD_ANY_SIDE constexpr size_t intermediate() const { return ffn_padded() * (gated ? 2 : 1); }
  constexpr size_t first_elements() const { return intermediate() * hidden_padded(); }
  constexpr size_t second_elements() const { return hidden_padded() * ffn_padded(); }
  /** The row of the first product's weights where the matrix up begins. */
  constexpr size_t up_row() const { return gated ? ffn_padded() : 0; }

  bool operator==(const Shape&) const = default;
};

/**
 * Bytes that an expert's weights take of a device, in one piece: large pieces come in pages of 2 MiB. services/model/device-bytes.ts
 * counts with the same.
 */
constexpr size_t expert_bytes(const Shape& shape) {
  constexpr size_t mebibyte = size_t{1} << 20;
  const size_t bytes = 2 * (shape.first_elements() + shape.second_elements());
  const size_t step = bytes < mebibyte ? 512 : 2 * mebibyte;
  return (bytes + step - 1) / step * step;
}

/** How many of the 8 columns from `column` on lie before `end`. */
SWITCHYARD_ANY_SIDE constexpr size_t columns_within(size_t column, size_t end) {
  return column >= end ? 0 : end - column < vector_elements ? end - column : vector_elements;
}

SWITCHYARD_ANY_SIDE inline float gelu(float value) { return 0.5f * value * (1.0f + erff(value * 0.70710678118654752f)); }

SWITCHYARD_ANY_SIDE inline float swiglu(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

}  // namespace switchyard::cuda
