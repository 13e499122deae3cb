#include "model/tensor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "kernels/bf16.h"
#include "model/generator.h"
#include "runtime/error.h"

namespace switchyard {

namespace {

constexpr size_t elements_max = size_t{1} << 44;
/** Elements converted at a time: the buffer stays in the first-level cache. */
constexpr size_t piece = 4096;
/** Elements read from a file and converted at a time: the buffer stays in the second-level cache. */
constexpr size_t read_piece = 32 * 1024;

size_t bytes_of(StoredDtype dtype) { return dtype == StoredDtype::f32 ? 4 : 2; }

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

template <typename Out>
void read_file(const FileTensor& tensor, size_t first, size_t count, Out* out) {
  const size_t element_bytes = bytes_of(tensor.dtype);
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
    read_file(*tensor, first, count, out);
  } else {
    read_synthetic(std::get<SyntheticTensor>(source.origin), first, count, out);
  }
}

}  // namespace

void check_tensor(const TensorSource& source, const std::string& field) {
  const std::string shape = std::to_string(source.rows) + " x " + std::to_string(source.columns);
  if (source.rows == 0 || source.columns == 0 || source.rows > elements_max / source.columns) {
    throw_invalid(field, shape, "1 to " + std::to_string(elements_max) + " elements");
  }
  if (const auto* tensor = std::get_if<FileTensor>(&source.origin)) {
    const size_t bytes = source.elements() * bytes_of(tensor->dtype);
    const size_t size = tensor->file->size();
    if (tensor->byte_offset > size || bytes > size - tensor->byte_offset) {
      throw_invalid(field, shape + " at byte " + std::to_string(tensor->byte_offset),
                    "tensors within the " + std::to_string(size) + " bytes of " + tensor->file->path());
    }
  }
}

void read_elements(const TensorSource& source, size_t first, size_t count, uint16_t* out) {
  read_any(source, first, count, out);
}

void read_elements(const TensorSource& source, size_t first, size_t count, float* out) {
  read_any(source, first, count, out);
}

}  // namespace switchyard
