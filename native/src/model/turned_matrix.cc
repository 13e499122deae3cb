#include <algorithm>
#include <array>
#include <cstring>

#include "model/stored_floats.h"
#include "model/tensor.h"

namespace switchyard {
namespace {

/** Bytes of neighbouring columns read at once: as many as stay in a cache, so that pages of the rows are visited seldom. */
constexpr size_t strip_bytes = 2 << 20;
/** What is turned together: a line of memory in either direction, or two. */
constexpr size_t tile_rows = 32, tile_columns = 64;

}  // namespace

TurnedMatrix::TurnedMatrix(const TensorSource& source) : tensor_(std::get<FileTensor>(source.origin)), rows_(source.rows), columns_(source.columns) {}

const std::byte* TurnedMatrix::elements() {
  std::call_once(turned_, [this] {
    switch (bits_of(tensor_.dtype)) {
      case 32: return turn<uint32_t>();
      case 16: return turn<uint16_t>();
      default: return turn<uint8_t>();
    }
  });
  return elements_.data();
}

template <typename Stored>
void TurnedMatrix::turn() {
  elements_.resize(rows_ * columns_ * sizeof(Stored));
  const size_t strip_columns = std::clamp<size_t>(strip_bytes / sizeof(Stored) / tensor_.column_stride, 1, columns_);
  std::vector<std::byte> strip;
  for (size_t column = 0; column < columns_; column += strip_columns) {
    const size_t count = std::min(strip_columns, columns_ - column);
    strip.resize(((count - 1) * tensor_.column_stride + (rows_ - 1) * tensor_.row_stride + 1) * sizeof(Stored));
    tensor_.file->read(tensor_.byte_offset + column * tensor_.column_stride * sizeof(Stored), strip.size(), strip.data());
    for (size_t row = 0; row < rows_; row += tile_rows) turn_tiles<Stored>(strip.data(), row, column, count);
  }
}

/** Rows lie powers of two apart, and so share few cache sets: a tile is put together elsewhere. */
template <typename Stored>
void TurnedMatrix::turn_tiles(const std::byte* strip, size_t row, size_t column, size_t count) {
  std::array<std::array<Stored, tile_columns>, tile_rows> tile;
  const size_t rows = std::min(tile_rows, rows_ - row);
  for (size_t first = 0; first < count; first += tile_columns) {
    const size_t columns = std::min(tile_columns, count - first);
    for (size_t c = 0; c < columns; ++c) {
      for (size_t r = 0; r < rows; ++r) tile[r][c] = at<Stored>(strip, (row + r) * tensor_.row_stride + (first + c) * tensor_.column_stride);
    }
    for (size_t r = 0; r < rows; ++r) {
      std::memcpy(elements_.data() + ((row + r) * columns_ + column + first) * sizeof(Stored), tile[r].data(), columns * sizeof(Stored));
    }
  }
}

}  // namespace switchyard
