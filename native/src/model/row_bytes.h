#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "model/tensor.h"

namespace switchyard {

/** The bytes of one row after another of a matrix whose columns are side by side, or have been turned so. */
class RowBytes {
 public:
  RowBytes(const TensorSource& source, const FileTensor& tensor) : tensor_(tensor), columns_(source.columns), bits_(bits_of(tensor.dtype)) {}

  /** Those of `row`, until the next call; rows from `end` on will not be asked for. */
  const std::byte* of(size_t row, size_t end) {
    if (tensor_.turned) return tensor_.turned->elements() + row * columns_ * bits_ / 8;
    if (row < from_ || row >= until_) read(row, end);
    return piece() + (row - from_) * tensor_.row_stride * bits_ / 8;
  }

 private:
  /** Bytes read at once of rows that are not side by side. */
  static constexpr size_t span_bytes_max = 1 << 20;

  /** Kept by the thread: memory that is new for every read costs more than the reading. */
  static std::vector<std::byte>& kept() {
    thread_local std::vector<std::byte> piece;
    return piece;
  }
  static const std::byte* piece() { return kept().data(); }

  void read(size_t row, size_t end) {
    from_ = row;
    until_ = std::min(end, row + std::max<size_t>(1, span_bytes_max * 8 / bits_ / std::max<size_t>(tensor_.row_stride, 1)));
    const size_t elements = (until_ - row - 1) * tensor_.row_stride + columns_;
    kept().resize((elements * bits_ + 7) / 8);
    tensor_.file->read(tensor_.byte_offset + row * tensor_.row_stride * bits_ / 8, kept().size(), kept().data());
  }

  const FileTensor& tensor_;
  size_t columns_;
  size_t bits_;
  size_t from_ = 0, until_ = 0;
};

}  // namespace switchyard
