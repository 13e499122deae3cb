#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/scales.h"
#include "model/stored_dtype.h"
#include "model/weight_file.h"

namespace switchyard {

class TurnedMatrix;

/** Little-endian elements in a file; the offset needs no alignment. */
struct FileTensor {
  std::shared_ptr<const WeightFile> file;
  size_t byte_offset;
  StoredDtype dtype;
  /** Elements from one row to the next, and from one column to the next. Rows of codes are whole bytes. */
  size_t row_stride;
  size_t column_stride = 1;
  /** Given if and only if the elements are codes. */
  std::optional<Scales> scales;
  /** Of a matrix whose columns are not side by side; see turn_columns. */
  std::shared_ptr<TurnedMatrix> turned = nullptr;
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

/** A matrix whose columns are not side by side in the file, read whole and put in order when it is first needed. */
class TurnedMatrix {
 public:
  /** Of a file, checked. */
  explicit TurnedMatrix(const TensorSource& source);
  /** As they are stored, row after row. Any number of threads may ask. Throws as WeightFile::read does. */
  const std::byte* elements();

 private:
  template <typename Stored>
  void turn();
  template <typename Stored>
  void turn_tiles(const std::byte* strip, size_t row, size_t column, size_t count);

  FileTensor tensor_;
  size_t rows_;
  size_t columns_;
  std::once_flag turned_;
  std::vector<std::byte> elements_;
};

/** Gives a checked source whose columns are not side by side its TurnedMatrix, without which it cannot be read. */
void turn_columns(TensorSource& source);

/** Throws INVALID_ARGUMENT, naming `field`, for a shape of no or too many elements, or one that ends past its file. */
void check_tensor(const TensorSource& source, const std::string& field);

/**
 * Writes elements first to first + count - 1, in row-major order: as BF16 (to nearest, ties to even), or as they are
 * stored (synthetic ones are BF16), codes times their scales. The source must have passed check_tensor. Any number of threads may read one source.
 */
void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out);
void read_elements(const TensorSource& source, size_t first, size_t count, float* out);

}  // namespace switchyard
