#include "model/tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/bf16.h"
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

/** out[i] = convert(element i of the bytes, which need no alignment). The dtype of `out` itself is read as it is. */
template <typename Stored, typename Out, typename Convert>
void convert_elements(const std::byte* bytes, size_t count, Out* out, const Convert& convert) {
  for (size_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, bytes + i * sizeof stored, sizeof stored);
    out[i] = convert(stored);
  }
}

void convert_bytes(const std::byte* bytes, StoredDtype dtype, size_t count, uint16_t* out) {
  if (dtype == StoredDtype::f32) {
    convert_elements<float>(bytes, count, out, float_to_bf16);
  } else {
    convert_elements<uint16_t>(bytes, count, out, [](uint16_t half) { return float_to_bf16(f16_to_float(half)); });
  }
}

void convert_bytes(const std::byte* bytes, StoredDtype dtype, size_t count, float* out) {
  convert_elements<uint16_t>(bytes, count, out, dtype == StoredDtype::bf16 ? bf16_to_float : f16_to_float);
}

constexpr bool is_stored_as(StoredDtype dtype, const uint16_t*) { return dtype == StoredDtype::bf16; }
constexpr bool is_stored_as(StoredDtype dtype, const float*) { return dtype == StoredDtype::f32; }

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
    convert_bytes(bytes.data(), tensor.dtype, part, out);
    offset += part * element_bytes;
    out += part;
    count -= part;
  }
}

/** The value of an element at a place in bytes, without its scale. */
float value_at(const std::byte* bytes, StoredDtype dtype, size_t element) {
  const auto byte = [&](size_t index) { return static_cast<uint8_t>(bytes[index]); };
  const auto half = [&] {
    uint16_t bits;
    std::memcpy(&bits, bytes + element * 2, sizeof bits);
    return bits;
  };
  const auto nibble = [&] { return (byte(element / 2) >> (element % 2 * 4)) & 15; };
  switch (dtype) {
    case StoredDtype::bf16: return bf16_to_float(half());
    case StoredDtype::f16: return f16_to_float(half());
    case StoredDtype::f32: {
      float value;
      std::memcpy(&value, bytes + element * sizeof value, sizeof value);
      return value;
    }
    case StoredDtype::f8_e4m3: return codes::e4m3[byte(element)];
    case StoredDtype::f4_e2m1: return codes::e2m1[nibble()];
    case StoredDtype::i8: return static_cast<int8_t>(byte(element));
    case StoredDtype::u8: return static_cast<float>(byte(element)) - 128;
    default: return static_cast<float>(nibble()) - 8;
  }
}

/** The scales of a row of a matrix, one for each block of its columns. */
std::vector<float> scales_of_row(const Scales& scales, size_t row) {
  const size_t bytes = scales.dtype == ScaleDtype::f32 ? 4 : scales.dtype == ScaleDtype::f8_e8m0 ? 1 : 2;
  const size_t at = (scales.first_row + row * scales.row_step) / scales.block_rows;
  std::vector<std::byte> stored(scales.columns * bytes);
  scales.file->read(scales.byte_offset + at * stored.size(), stored.size(), stored.data());
  std::vector<float> values(scales.columns);
  for (size_t i = 0; i < values.size(); ++i) {
    switch (scales.dtype) {
      case ScaleDtype::bf16: values[i] = value_at(stored.data(), StoredDtype::bf16, i); break;
      case ScaleDtype::f16: values[i] = value_at(stored.data(), StoredDtype::f16, i); break;
      case ScaleDtype::f32: values[i] = value_at(stored.data(), StoredDtype::f32, i); break;
      default: values[i] = codes::e8m0(static_cast<uint8_t>(stored[i]));
    }
  }
  return values;
}

void put(float value, float* out) { *out = value; }
void put(float value, uint16_t* out) { *out = float_to_bf16(value); }

/** Elements [first, end) of one row, whose element 0 is element `origin` of `bytes`. */
template <typename Out>
void decode_row(const FileTensor& tensor, const std::byte* bytes, size_t origin, size_t first, size_t end,
                const std::vector<float>& scales, Out* out) {
  for (size_t column = first; column < end; ++column, ++out) {
    float value = value_at(bytes, tensor.dtype, origin + column * tensor.column_stride);
    if (tensor.scales) value *= scales[(tensor.scales->first_column + column) / tensor.scales->block_columns];
    put(value, out);
  }
}

/** Elements that are not as they are, or not side by side. */
template <typename Out>
void read_placed(const TensorSource& source, const FileTensor& tensor, size_t first, size_t count, Out* out) {
  const size_t columns = source.columns;
  const size_t bits = bits_of(tensor.dtype);
  const std::vector<std::byte>* const whole = tensor.whole ? &tensor.whole->bytes() : nullptr;
  thread_local std::vector<std::byte> piece;
  std::vector<float> scales;
  size_t scaled_row = std::numeric_limits<size_t>::max();
  /** Rows whose bytes are read at once. */
  const size_t rows_at_once = std::max<size_t>(1, span_bytes_max * 8 / bits / std::max<size_t>(tensor.row_stride, 1));
  size_t row = first / columns;
  size_t read_until = row;
  size_t read_from = 0;
  for (size_t column = first % columns; count > 0; ++row, column = 0) {
    const size_t end = std::min(columns, column + count);
    if (whole == nullptr && row >= read_until) {
      read_from = row;
      read_until = std::min(row + rows_at_once, source.rows);
      const size_t elements = (read_until - row - 1) * tensor.row_stride + columns;
      piece.resize((elements * bits + 7) / 8);
      tensor.file->read(tensor.byte_offset + row * tensor.row_stride * bits / 8, piece.size(), piece.data());
    }
    if (tensor.scales) {
      const size_t at = (tensor.scales->first_row + row * tensor.scales->row_step) / tensor.scales->block_rows;
      if (at != scaled_row) scales = scales_of_row(*tensor.scales, row);
      scaled_row = at;
    }
    const std::vector<std::byte>& bytes = whole == nullptr ? piece : *whole;
    decode_row(tensor, bytes.data(), (row - read_from) * tensor.row_stride, column, end, scales, out);
    out += end - column;
    count -= end - column;
  }
}

bool is_plain(const TensorSource& source, const FileTensor& tensor) {
  return !tensor.scales && tensor.column_stride == 1 && tensor.row_stride == source.columns;
}

template <typename Out>
void read_file(const TensorSource& source, const FileTensor& tensor, size_t first, size_t count, Out* out) {
  if (is_plain(source, tensor)) read_plain(tensor, first, count, out);
  else read_placed(source, tensor, first, count, out);
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

WholeMatrix::WholeMatrix(std::shared_ptr<const WeightFile> file, size_t byte_offset, size_t byte_count)
    : file_(std::move(file)), byte_offset_(byte_offset), byte_count_(byte_count) {}

const std::vector<std::byte>& WholeMatrix::bytes() {
  std::call_once(read_, [this] {
    bytes_.resize(byte_count_);
    file_->read(byte_offset_, byte_count_, bytes_.data());
  });
  return bytes_;
}

void place_whole(TensorSource& source) {
  auto* const tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor == nullptr || tensor->column_stride == 1) return;
  tensor->whole = std::make_shared<WholeMatrix>(tensor->file, tensor->byte_offset, byte_span(source, *tensor));
}

void check_tensor(const TensorSource& source, const std::string& field) {
  const std::string shape = std::to_string(source.rows) + " x " + std::to_string(source.columns);
  if (source.rows == 0 || source.columns == 0 || source.rows > elements_max / source.columns) {
    throw_invalid(field, shape, "1 to " + std::to_string(elements_max) + " elements");
  }
  const auto* tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor == nullptr) return;
  require_within(*tensor->file, tensor->byte_offset, byte_span(source, *tensor), field, shape);
  if (tensor->scales.has_value() != is_code(tensor->dtype)) throw_invalid(field, shape, "scales for codes alone");
  if (!tensor->scales) return;
  const Scales& scales = *tensor->scales;
  const size_t last_row = (scales.first_row + (source.rows - 1) * scales.row_step) / scales.block_rows;
  const size_t last_column = (scales.first_column + source.columns - 1) / scales.block_columns;
  if (last_column >= scales.columns) throw_invalid(field, shape, "a scale for every column");
  const size_t bytes = scales.dtype == ScaleDtype::f32 ? 4 : scales.dtype == ScaleDtype::f8_e8m0 ? 1 : 2;
  require_within(*scales.file, scales.byte_offset, (last_row + 1) * scales.columns * bytes, field, shape);
}

void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out) {
  read_any(source, first, count, out);
}

void read_elements(const TensorSource& source, size_t first, size_t count, float* out) {
  read_any(source, first, count, out);
}

size_t columns_per_scale(const TensorSource& source) {
  const auto* const tensor = std::get_if<FileTensor>(&source.origin);
  if (tensor == nullptr || !tensor->scales || tensor->column_stride != 1) return 0;
  const auto& [first, block] = std::pair{tensor->scales->first_column, tensor->scales->block_columns};
  if (first % block == 0) return block;
  return first / block == (first + source.columns - 1) / block ? source.columns : 0;
}

void read_codes(const TensorSource& source, size_t first_row, size_t row_count, uint8_t* out) {
  const FileTensor& tensor = std::get<FileTensor>(source.origin);
  const size_t bits = bits_of(tensor.dtype);
  const size_t columns = source.columns;
  thread_local std::vector<std::byte> piece;
  const size_t rows_at_once = std::max<size_t>(1, span_bytes_max * 8 / bits / tensor.row_stride);
  for (size_t row = first_row; row < first_row + row_count;) {
    const size_t rows = std::min(rows_at_once, first_row + row_count - row);
    piece.resize((((rows - 1) * tensor.row_stride + columns) * bits + 7) / 8);
    tensor.file->read(tensor.byte_offset + row * tensor.row_stride * bits / 8, piece.size(), piece.data());
    for (size_t i = 0; i < rows; ++i, out += columns) {
      const auto* const from = reinterpret_cast<const uint8_t*>(piece.data()) + i * tensor.row_stride * bits / 8;
      if (bits == 4) {
        split_nibbles(from, columns, out);
      } else if (tensor.dtype == StoredDtype::u8) {
        for (size_t column = 0; column < columns; ++column) out[column] = from[column] ^ 0x80;
      } else {
        std::copy_n(from, columns, out);
      }
    }
    row += rows;
  }
}

void read_scales(const TensorSource& source, size_t first_row, size_t row_count, float* out) {
  const Scales& scales = *std::get<FileTensor>(source.origin).scales;
  const size_t first = scales.first_column / scales.block_columns;
  const size_t end = (scales.first_column + source.columns - 1) / scales.block_columns + 1;
  size_t read_row = std::numeric_limits<size_t>::max();
  std::vector<float> values;
  for (size_t row = first_row; row < first_row + row_count; ++row) {
    const size_t at = (scales.first_row + row * scales.row_step) / scales.block_rows;
    if (at != read_row) values = scales_of_row(scales, row);
    read_row = at;
    out = std::copy(values.begin() + static_cast<std::ptrdiff_t>(first), values.begin() + static_cast<std::ptrdiff_t>(end), out);
  }
}

}  // namespace switchyard
