#include "model/tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <vector>

#include "model/codes.h"
#include "model/generator.h"
#include "model/row_bytes.h"
#include "model/stored_floats.h"
#include "runtime/error.h"

namespace switchyard {

namespace {

constexpr size_t elements_max = size_t{1} << 44;
/** Elements converted at a time: the buffer stays in the first-level cache. */
constexpr size_t piece = 4096;
/** Elements read from a file and converted at a time: the buffer stays in the second-level cache. */
constexpr size_t read_piece = 32 * 1024;

__attribute__((target("avx2"))) void round_finite(const float* values, size_t count, float scale, float center,
                                                  uint16_t* out) {
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(center + scale * values[i]);
    out[i] = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
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
  if (tensor.scales) scales.emplace(*tensor.scales, columns, bits_of(tensor.dtype));
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
  const size_t zero_bytes = bytes_of(*scales.zeros, bits_of(tensor->dtype), rows) * scales.columns;
  require_within(*scales.zeros->file, scales.zeros->byte_offset, zero_bytes, field, shape);
}

void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out) {
  read_any(source, first, count, out);
}

void read_elements(const TensorSource& source, size_t first, size_t count, float* out) {
  read_any(source, first, count, out);
}

}  // namespace switchyard
