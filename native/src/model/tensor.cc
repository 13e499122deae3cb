#include "model/tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/convert.h"
#include "model/codes.h"
#include "model/generator.h"
#include "runtime/error.h"

namespace switchyard {

namespace {

constexpr size_t elements_max = size_t{1} << 44;
/** Elements converted at a time: the buffer stays in the first-level cache. */
constexpr size_t piece = 4096;
/** Elements read from a file and converted at a time: the buffer stays in the second-level cache. */
constexpr size_t read_piece = 32 * 1024;
/** Bytes read at once of rows that are not side by side. */
constexpr size_t span_bytes_max = 1 << 20;
/** Bytes of neighbouring columns read at once: as many as stay in a cache, so that pages of the rows are visited seldom. */
constexpr size_t strip_bytes = 2 << 20;
/** What is turned together: a line of memory in either direction, or two. */
constexpr size_t tile_rows = 32, tile_columns = 64;

/** The lower four bits of a byte come first. */
void split_nibbles(const uint8_t* bytes, size_t count, uint8_t* out) {
  // Two at once, so that the compiler takes many at once.
  for (size_t pair = 0; pair < count / 2; ++pair) {
    out[2 * pair] = bytes[pair] & 15;
    out[2 * pair + 1] = bytes[pair] >> 4;
  }
  if (count % 2 == 1) out[count - 1] = bytes[count / 2] & 15;
}

/** IEEE binary16 to float, exact. */
float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

__attribute__((target("avx2"))) void round_finite(const float* values, size_t count, float scale, float center,
                                                  uint16_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(center + scale * values[i]);
    out[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

constexpr bool is_stored_as(StoredDtype dtype, const uint16_t*) { return dtype == StoredDtype::bf16; }
constexpr bool is_stored_as(StoredDtype dtype, const float*) { return dtype == StoredDtype::f32; }

template <typename Stored>
Stored at(const std::byte* bytes, size_t index) {
  Stored stored;
  std::memcpy(&stored, bytes + index * sizeof stored, sizeof stored);
  return stored;
}

void convert(const std::byte* bytes, StoredDtype dtype, size_t count, uint16_t* out) {
  narrow_rows(bytes, dtype == StoredDtype::f32 ? RowDtype::f32 : RowDtype::f16, count, out);
}

void convert(const std::byte* bytes, StoredDtype dtype, size_t count, float* out) {
  const auto widen = dtype == StoredDtype::bf16 ? bf16_to_float : f16_to_float;
  for (size_t i = 0; i < count; ++i) out[i] = widen(at<uint16_t>(bytes, i));
}

/** Elements that are side by side and no codes. */
template <typename Out>
void place(const std::byte* bytes, StoredDtype dtype, size_t count, Out* out) {
  if (is_stored_as(dtype, out)) std::memcpy(out, bytes, count * sizeof *out);
  else convert(bytes, dtype, count, out);
}

/** Elements as they are, one after the other. */
template <typename Out>
void read_plain(const FileTensor& tensor, size_t first, size_t count, Out* out) {
  const size_t element_bytes = bits_of(tensor.dtype) / 8;
  size_t offset = tensor.byte_offset + first * element_bytes;
  if (is_stored_as(tensor.dtype, out)) {
    tensor.file->read(offset, count * element_bytes, reinterpret_cast<std::byte*>(out));
    return;
  }
  // Kept by the thread: memory that is new for every read costs more than the reading.
  thread_local std::vector<std::byte> bytes(read_piece * sizeof(float));
  while (count > 0) {
    const size_t part = std::min(count, read_piece);
    tensor.file->read(offset, part * element_bytes, bytes.data());
    convert(bytes.data(), tensor.dtype, part, out);
    offset += part * element_bytes;
    out += part;
    count -= part;
  }
}

/** Calls body(read), where read(bytes, element) is the value of a code, without its scale. */
template <typename Body>
void with_reader(StoredDtype dtype, const Body& body) {
  using Bytes = const std::byte*;
  const auto nibble = [](Bytes bytes, size_t element) { return (at<uint8_t>(bytes, element / 2) >> (element % 2 * 4)) & 15; };
  switch (dtype) {
    case StoredDtype::f8_e4m3: return body([](Bytes bytes, size_t element) { return codes::e4m3[at<uint8_t>(bytes, element)]; });
    case StoredDtype::f4_e2m1: return body([=](Bytes bytes, size_t element) { return codes::e2m1[nibble(bytes, element)]; });
    case StoredDtype::i8: return body([](Bytes bytes, size_t element) { return static_cast<float>(at<int8_t>(bytes, element)); });
    case StoredDtype::u8: return body([](Bytes bytes, size_t element) { return static_cast<float>(at<uint8_t>(bytes, element)) - 128; });
    default: return body([=](Bytes bytes, size_t element) { return static_cast<float>(nibble(bytes, element)) - 8; });
  }
}

constexpr size_t bytes_of(ScaleDtype dtype) { return dtype == ScaleDtype::f32 ? 4 : dtype == ScaleDtype::f8_e8m0 ? 1 : 2; }

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

/** Which column of the scales each column has, where that is told. Throws MODEL_INVALID for one that there is not. */
std::vector<uint32_t> groups_of(const TensorSource& source, const Scales& scales) {
  std::vector<uint32_t> groups(source.columns);
  const WeightFile& file = *scales.groups->file;
  file.read(scales.groups->byte_offset + scales.first_column * sizeof(uint32_t), groups.size() * sizeof(uint32_t), reinterpret_cast<std::byte*>(groups.data()));
  const auto far = std::ranges::find_if(groups, [&](uint32_t group) { return group >= scales.columns; });
  if (far == groups.end()) return groups;
  throw Error(Code::model_invalid, file.path() + ": a column is of group " + std::to_string(static_cast<int32_t>(*far)) + "; allowed: 0 to " + std::to_string(scales.columns - 1));
}

/** The scales, and the zero points, of one row of a matrix of codes after another. */
class RowScales {
 public:
  RowScales(const TensorSource& source, const FileTensor& tensor) : scales_(*tensor.scales), bits_(bits_of(tensor.dtype)) {
    const size_t last = scales_.first_column + source.columns - 1;
    if (scales_.groups) groups_ = groups_of(source, scales_);
    values_.resize(scales_.transposed ? last / scales_.block_columns + 1 : scales_.columns);
    if (scales_.zeros) zeros_.resize(scales_.columns);
    if (!scales_.transposed) return;
    grid_.resize(values_.size() * scales_.columns);
    read(0, grid_);
  }

  void go_to(size_t row) {
    const size_t wanted = (scales_.first_row + row * scales_.row_step) / scales_.block_rows;
    if (wanted == row_) return;
    if (!scales_.transposed) read(wanted * scales_.columns, values_);
    for (size_t i = 0; i < grid_.size() / scales_.columns; ++i) values_[i] = grid_[i * scales_.columns + wanted];
    if (scales_.zeros) read_zeros(*scales_.zeros, bits_, wanted, zeros_);
    row_ = wanted;
  }

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
  void read(size_t first, std::vector<float>& out) {
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

void put(float value, float* out) { *out = value; }
void put(float value, uint16_t* out) { *out = float_to_bf16(value); }

/** Codes [first, end) of one row times their scales. */
template <typename Out>
void decode_row(StoredDtype dtype, const std::byte* bytes, size_t first, size_t end, const RowScales& scales, Out* out) {
  with_reader(dtype, [&](auto read) {
    while (first < end) {
      const size_t number = scales.number_of(first);
      const size_t until = std::min(end, scales.end_of(first));
      const auto zero = static_cast<float>(scales.zero(number));
      for (const float scale = scales.values()[number]; first < until; ++first, ++out) put((read(bytes, first) - zero) * scale, out);
    }
  });
}

/** Elements of rows that are not side by side, or of codes. */
template <typename Out>
void read_rows(const TensorSource& source, const FileTensor& tensor, size_t first, size_t count, Out* out) {
  const size_t columns = source.columns;
  RowBytes rows(source, tensor);
  std::optional<RowScales> scales;
  if (tensor.scales) scales.emplace(source, tensor);
  const size_t end_row = (first + count + columns - 1) / columns;
  size_t row = first / columns;
  for (size_t column = first % columns; count > 0; ++row, column = 0) {
    const size_t end = std::min(columns, column + count);
    const std::byte* const bytes = rows.of(row, end_row);
    if (scales) {
      scales->go_to(row);
      decode_row(tensor.dtype, bytes, column, end, *scales, out);
    } else {
      place(bytes + column * bits_of(tensor.dtype) / 8, tensor.dtype, end - column, out);
    }
    out += end - column;
    count -= end - column;
  }
}

bool is_plain(const TensorSource& source, const FileTensor& tensor) {
  return !tensor.scales && !tensor.turned && tensor.row_stride == source.columns;
}

template <typename Out>
void read_file(const TensorSource& source, const FileTensor& tensor, size_t first, size_t count, Out* out) {
  if (is_plain(source, tensor)) read_plain(tensor, first, count, out);
  else read_rows(source, tensor, first, count, out);
}

void read_synthetic(const SyntheticTensor& tensor, size_t first, size_t count, uint16_t* out) {
  const Generator generator(tensor.seed, Generator::Domain::weights, tensor.stream);
  std::array<float, piece> values;
  while (count > 0) {
    const size_t part = std::min(count, piece);
    generator.uniform(first, part, values.data());
    round_finite(values.data(), part, tensor.scale, tensor.center, out);
    first += part;
    out += part;
    count -= part;
  }
}

void read_synthetic(const SyntheticTensor& tensor, size_t first, size_t count, float* out) {
  std::vector<uint16_t> bits(count);
  read_synthetic(tensor, first, count, bits.data());
  std::transform(bits.begin(), bits.end(), out, bf16_to_float);
}

template <typename Out>
void read_any(const TensorSource& source, size_t first, size_t count, Out* out) {
  if (const auto* tensor = std::get_if<FileTensor>(&source.origin)) {
    read_file(source, *tensor, first, count, out);
  } else {
    read_synthetic(std::get<SyntheticTensor>(source.origin), first, count, out);
  }
}

/** From the first element to the last, in bytes. */
size_t byte_span(const TensorSource& source, const FileTensor& tensor) {
  const size_t last = (source.rows - 1) * tensor.row_stride + (source.columns - 1) * tensor.column_stride;
  return ((last + 1) * bits_of(tensor.dtype) + 7) / 8;
}

void require_within(const WeightFile& file, size_t offset, size_t bytes, const std::string& field, const std::string& shape) {
  if (offset <= file.size() && bytes <= file.size() - offset) return;
  throw_invalid(field, shape + " at byte " + std::to_string(offset),
                "tensors within the " + std::to_string(file.size()) + " bytes of " + file.path());
}

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

void turn_columns(TensorSource& source) {
  auto* const tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor != nullptr && tensor->column_stride > 1) tensor->turned = std::make_shared<TurnedMatrix>(source);
}

void check_tensor(const TensorSource& source, const std::string& field) {
  const std::string shape = std::to_string(source.rows) + " x " + std::to_string(source.columns);
  if (source.rows == 0 || source.columns == 0 || source.rows > elements_max / source.columns) {
    throw_invalid(field, shape, "1 to " + std::to_string(elements_max) + " elements");
  }
  const auto* tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor == nullptr) return;
  const std::string placed = shape + ", " + std::to_string(tensor->row_stride) + " elements from row to row and " + std::to_string(tensor->column_stride) + " from column to column";
  if (tensor->row_stride > elements_max / source.rows || tensor->column_stride > elements_max / source.columns) {
    throw_invalid(field, placed, "rows and columns over " + std::to_string(elements_max) + " elements at most");
  }
  if (tensor->column_stride > 1 && tensor->column_stride < tensor->row_stride) {
    throw_invalid(field, placed, "columns side by side, or farther apart than rows");
  }
  if (tensor->column_stride > 1 && bits_of(tensor->dtype) < 8) throw_invalid(field, shape, "columns side by side, for codes of less than a byte");
  require_within(*tensor->file, tensor->byte_offset, byte_span(source, *tensor), field, shape);
  if (tensor->scales.has_value() != is_code(tensor->dtype)) throw_invalid(field, shape, "scales for codes alone");
  if (!tensor->scales) return;
  const Scales& scales = *tensor->scales;
  if (scales.row_step > elements_max / source.rows || scales.first_row > elements_max || scales.first_column > elements_max) {
    throw_invalid(field, shape, "scales of the first " + std::to_string(elements_max) + " rows and columns");
  }
  size_t rows = (scales.first_row + (source.rows - 1) * scales.row_step) / scales.block_rows + 1;
  size_t columns = scales.groups ? 1 : (scales.first_column + source.columns - 1) / scales.block_columns + 1;
  if (scales.transposed) std::swap(rows, columns);
  if (columns > scales.columns || scales.columns > elements_max / rows) throw_invalid(field, shape, "a scale for every column, and " + std::to_string(elements_max) + " at most");
  require_within(*scales.file, scales.byte_offset, rows * scales.columns * bytes_of(scales.dtype), field, shape);
  if (scales.groups) require_within(*scales.groups->file, scales.groups->byte_offset, (scales.first_column + source.columns) * sizeof(uint32_t), field, shape);
  if (!scales.zeros) return;
  if (scales.transposed || tensor->dtype < StoredDtype::i8) throw_invalid(field, shape, "zero points of integers alone, whose columns are side by side");
  const size_t zero_bytes = scales.zeros->packed ? (rows - 1) / rows_per_word(bits_of(tensor->dtype)) * sizeof(uint32_t) + sizeof(uint32_t) : rows;
  require_within(*scales.zeros->file, scales.zeros->byte_offset, zero_bytes * scales.columns, field, shape);
}

void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out) {
  read_any(source, first, count, out);
}

void read_elements(const TensorSource& source, size_t first, size_t count, float* out) {
  read_any(source, first, count, out);
}

size_t columns_per_scale(const TensorSource& source) {
  const auto* const tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor == nullptr || !tensor->scales) return 0;
  const auto& [first, block] = std::pair{tensor->scales->first_column, tensor->scales->block_columns};
  if (first % block == 0) return block;
  return first / block == (first + source.columns - 1) / block ? source.columns : 0;
}

bool has_groups(const TensorSource& source) { return std::get<FileTensor>(source.origin).scales->groups.has_value(); }

std::vector<uint32_t> read_column_order(const TensorSource& source) {
  const Scales& scales = *std::get<FileTensor>(source.origin).scales;
  const std::vector<uint32_t> groups = groups_of(source, scales);
  std::vector<uint32_t> order(groups.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](uint32_t column) { return groups[column]; });
  for (size_t place = 0; place < order.size(); ++place) {
    if (groups[order[place]] != place / scales.block_columns) return {};
  }
  return order;
}

void read_codes(const TensorSource& source, size_t first_row, size_t row_count, uint8_t* out) {
  const FileTensor& tensor = std::get<FileTensor>(source.origin);
  const size_t columns = source.columns;
  const size_t end = first_row + row_count;
  RowBytes rows(source, tensor);
  for (size_t row = first_row; row < end; ++row, out += columns) {
    const auto* const from = reinterpret_cast<const uint8_t*>(rows.of(row, end));
    if (bits_of(tensor.dtype) == 4) {
      split_nibbles(from, columns, out);
    } else if (tensor.dtype == StoredDtype::u8) {
      for (size_t column = 0; column < columns; ++column) out[column] = from[column] ^ 0x80;
    } else {
      std::copy_n(from, columns, out);
    }
  }
}

namespace {

/** Calls take(rows, number of the first, number behind the last) with the scales of one row after another. */
template <typename Take>
void for_scales(const TensorSource& source, size_t first_row, size_t row_count, const Take& take) {
  const FileTensor& tensor = std::get<FileTensor>(source.origin);
  RowScales rows(source, tensor);
  // Columns that have an order of their own have all scales, from the first on.
  const bool ordered = tensor.scales->groups.has_value();
  const size_t first = ordered ? 0 : rows.number_of(0), last = ordered ? (source.columns - 1) / tensor.scales->block_columns : rows.number_of(source.columns - 1);
  for (size_t row = first_row; row < first_row + row_count; ++row) {
    rows.go_to(row);
    take(rows, first, last + 1);
  }
}

}  // namespace

void read_scales(const TensorSource& source, size_t first_row, size_t row_count, float* out) {
  for_scales(source, first_row, row_count, [&](const RowScales& rows, size_t first, size_t end) {
    for (size_t number = first; number < end; ++number) *out++ = rows.values()[number];
  });
}

bool has_zeros(const TensorSource& source) { return std::get<FileTensor>(source.origin).scales->zeros.has_value(); }

void read_zeros(const TensorSource& source, size_t first_row, size_t row_count, int8_t* out) {
  for_scales(source, first_row, row_count, [&](const RowScales& rows, size_t first, size_t end) {
    for (size_t number = first; number < end; ++number) *out++ = static_cast<int8_t>(rows.zero(number));
  });
}

}  // namespace switchyard
