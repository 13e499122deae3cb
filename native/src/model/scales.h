#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "model/weight_file.h"

namespace switchyard {

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

constexpr size_t bytes_of(ScaleDtype dtype) { return dtype == ScaleDtype::f32 ? 4 : dtype == ScaleDtype::f8_e8m0 ? 1 : 2; }

/** Of the zero points of so many rows of scales, of codes of so many bits: for every column of the scales. */
size_t bytes_of(const ZeroPoints& zeros, size_t bits, size_t rows);

/** Which column of the scales each of so many columns has, where that is told. Throws MODEL_INVALID for one that there is not. */
std::vector<uint32_t> read_groups(const Scales& scales, size_t columns);

/** The scales, and the zero points, of one row of a matrix of codes after another. */
class RowScales {
 public:
  /** Of a matrix with so many columns, whose codes have so many bits. `scales` must outlive it. Throws as WeightFile::read does, and MODEL_INVALID for a group that there is not. */
  RowScales(const Scales& scales, size_t columns, size_t bits);

  void go_to(size_t row);

  /** Those of the row, in the order of the columns. */
  const std::vector<float>& values() const { return values_; }
  int zero(size_t number) const { return zeros_.empty() ? 0 : zeros_[number]; }
  /** Which of them a column of the matrix has. */
  size_t number_of(size_t column) const { return groups_.empty() ? (scales_.first_column + column) / scales_.block_columns : groups_[column]; }
  /** Up to where columns from `column` on, which has it, have the same. */
  size_t end_of(size_t column) const {
    return groups_.empty() ? (number_of(column) + 1) * scales_.block_columns - scales_.first_column : column + 1;
  }

 private:
  void read(size_t first, std::vector<float>& out);

  const Scales& scales_;
  size_t bits_;
  std::vector<std::byte> stored_;
  size_t row_ = std::numeric_limits<size_t>::max();
  std::vector<uint32_t> groups_;
  /** Of transposed scales, all of them as they are stored. */
  std::vector<float> grid_;
  std::vector<float> values_;
  std::vector<int> zeros_;
};

}  // namespace switchyard
