#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/weight_file.h"

namespace switchyard {

/** The last five are codes, which are multiplied by a scale; u8 stands 128 above its value, u4 stands 8 above. Of two u4 or f4 in a byte the lower is first. */
enum class StoredDtype { bf16, f16, f32, f8_e4m3, f4_e2m1, i8, u8, u4 };
constexpr bool is_code(StoredDtype dtype) { return dtype >= StoredDtype::f8_e4m3; }
/** Of one element. */
constexpr size_t bits_of(StoredDtype dtype) {
  if (dtype == StoredDtype::f32) return 32;
  if (dtype == StoredDtype::f4_e2m1 || dtype == StoredDtype::u4) return 4;
  return is_code(dtype) ? 8 : 16;
}

/** f8_e8m0: 2^(e - 127). */
enum class ScaleDtype { bf16, f16, f32, f8_e8m0 };

/** What is taken from codes, one for each scale; see ZeroPointSource in native/tensors.ts. */
struct ZeroPoints {
  std::shared_ptr<const WeightFile> file;
  size_t byte_offset;
  bool packed;
};

/** Which column of the scales each column has: integers of 32 bits. */
struct ColumnGroups {
  std::shared_ptr<const WeightFile> file;
  size_t byte_offset;
};

/** What codes are multiplied by; see ScaleSource in native/tensors.ts. */
struct Scales {
  std::shared_ptr<const WeightFile> file;
  size_t byte_offset;
  ScaleDtype dtype;
  size_t columns;
  size_t block_rows, block_columns;
  size_t first_row, row_step, first_column;
  /** The rows of the matrix go along the rows of the scales in the file. */
  bool transposed = false;
  std::optional<ZeroPoints> zeros = std::nullopt;
  /** Absent: blocks of columns that are side by side. */
  std::optional<ColumnGroups> groups = std::nullopt;
};

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

/** Columns to a scale, from the first on, of a source whose rows can be read as codes; 0: it is none, or scales lie in another way. */
size_t columns_per_scale(const TensorSource& source);
/** Whether which column has which scale is told for each, in such a source; if so, the order of columns in which they lie as said, or nothing where none does. */
bool has_groups(const TensorSource& source);
std::vector<uint32_t> read_column_order(const TensorSource& source);
/** Rows of such a source as codes, a byte each; those that stand 128 above their value become signed. */
void read_codes(const TensorSource& source, size_t first_row, size_t row_count, uint8_t* out);
/** Their scales, as many a row as there are blocks of columns. */
void read_scales(const TensorSource& source, size_t first_row, size_t row_count, float* out);
/** Whether such a source has zero points, -128 to 127 each, and those, in the order of the scales. */
bool has_zeros(const TensorSource& source);
void read_zeros(const TensorSource& source, size_t first_row, size_t row_count, int8_t* out);

}  // namespace switchyard
