#include "model/scales.h"

#include <algorithm>
#include <string>

#include "model/codes.h"
#include "model/stored_floats.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

/** Rows of zero points to a word of 32 bits. */
size_t rows_per_word(size_t bits) { return 32 / bits; }

/** Those of a row of the scales, of codes of so many bits. */
void read_zeros(const ZeroPoints& zeros, size_t bits, size_t row, std::vector<int>& out) {
  if (!zeros.packed) {
    std::vector<int8_t> stored(out.size());
    zeros.file->read(zeros.byte_offset + row * stored.size(), stored.size(), reinterpret_cast<std::byte*>(stored.data()));
    std::ranges::copy(stored, out.begin());
    return;
  }
  const size_t rows = rows_per_word(bits);
  std::vector<uint32_t> words(out.size());
  zeros.file->read(zeros.byte_offset + row / rows * words.size() * sizeof(uint32_t), words.size() * sizeof(uint32_t), reinterpret_cast<std::byte*>(words.data()));
  const int above = 1 << (bits - 1);
  std::ranges::transform(words, out.begin(), [&](uint32_t word) {
    return static_cast<int>(word >> (row % rows * bits) & (2 * above - 1)) - above;
  });
}

}  // namespace

size_t bytes_of(const ZeroPoints& zeros, size_t bits, size_t rows) {
  return zeros.packed ? ((rows - 1) / rows_per_word(bits) + 1) * sizeof(uint32_t) : rows;
}

std::vector<uint32_t> read_groups(const Scales& scales, size_t columns) {
  std::vector<uint32_t> groups(columns);
  const WeightFile& file = *scales.groups->file;
  file.read(scales.groups->byte_offset + scales.first_column * sizeof(uint32_t), groups.size() * sizeof(uint32_t), reinterpret_cast<std::byte*>(groups.data()));
  const auto far = std::ranges::find_if(groups, [&](uint32_t group) { return group >= scales.columns; });
  if (far == groups.end()) return groups;
  throw Error(Code::model_invalid, file.path() + ": a column is of group " + std::to_string(static_cast<int32_t>(*far)) + "; allowed: 0 to " + std::to_string(scales.columns - 1));
}

RowScales::RowScales(const Scales& scales, size_t columns, size_t bits) : scales_(scales), bits_(bits) {
  const size_t last = scales_.first_column + columns - 1;
  if (scales_.groups) groups_ = read_groups(scales_, columns);
  values_.resize(scales_.transposed ? last / scales_.block_columns + 1 : scales_.columns);
  if (scales_.zeros) zeros_.resize(scales_.columns);
  if (!scales_.transposed) return;
  grid_.resize(values_.size() * scales_.columns);
  read(0, grid_);
}

void RowScales::go_to(size_t row) {
  const size_t wanted = (scales_.first_row + row * scales_.row_step) / scales_.block_rows;
  if (wanted == row_) return;
  if (!scales_.transposed) read(wanted * scales_.columns, values_);
  for (size_t i = 0; i < grid_.size() / scales_.columns; ++i) values_[i] = grid_[i * scales_.columns + wanted];
  if (scales_.zeros) read_zeros(*scales_.zeros, bits_, wanted, zeros_);
  row_ = wanted;
}

void RowScales::read(size_t first, std::vector<float>& out) {
  const size_t bytes = bytes_of(scales_.dtype);
  stored_.resize(out.size() * bytes);
  scales_.file->read(scales_.byte_offset + first * bytes, stored_.size(), stored_.data());
  switch (scales_.dtype) {
    case ScaleDtype::bf16: return place(stored_.data(), StoredDtype::bf16, out.size(), out.data());
    case ScaleDtype::f16: return place(stored_.data(), StoredDtype::f16, out.size(), out.data());
    case ScaleDtype::f32: return place(stored_.data(), StoredDtype::f32, out.size(), out.data());
    case ScaleDtype::f8_e8m0: std::ranges::transform(stored_, out.begin(), [](std::byte code) { return codes::e8m0(static_cast<uint8_t>(code)); });
  }
}

}  // namespace switchyard
