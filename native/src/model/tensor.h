#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "model/weight_file.h"

namespace switchyard {

enum class StoredDtype { bf16, f16, f32 };

/** Little-endian elements in a file, row after row; the offset needs no alignment. */
struct FileTensor {
  std::shared_ptr<const WeightFile> file;
  size_t byte_offset;
  StoredDtype dtype;
};

/** Values uniform in [center - scale, center + scale), the same on every machine. */
struct SyntheticTensor {
  uint64_t seed;
  /** Names the tensor: other streams are independent. */
  uint64_t stream;
  float scale;
  float center;
};

/** Where a row-major [rows, columns] matrix comes from; a vector has one row. */
struct TensorSource {
  size_t rows = 0;
  size_t columns = 0;
  std::variant<FileTensor, SyntheticTensor> origin;

  size_t elements() const { return rows * columns; }
};

/** Throws INVALID_ARGUMENT, naming `field`, for a shape of no or too many elements, or one that ends past its file. */
void check_tensor(const TensorSource& source, const std::string& field);

/**
 * Writes elements first to first + count - 1, in row-major order: as BF16 (to nearest, ties to even), or as they are
 * stored (synthetic ones are BF16). The source must have passed check_tensor. Any number of threads may read one source.
 */
void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out);
void read_elements(const TensorSource& source, size_t first, size_t count, float* out);

}  // namespace switchyard
