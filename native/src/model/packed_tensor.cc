#include "model/packed_tensor.h"

#include <algorithm>
#include <numeric>

#include "model/row_bytes.h"

namespace switchyard {
namespace {

/** The lower four bits of a byte come first. */
void split_nibbles(const uint8_t* bytes, size_t count, uint8_t* out) {
  // Two at once, so that the compiler takes many at once.
  for (size_t pair = 0; pair < count / 2; ++pair) {
    out[2 * pair] = bytes[pair] & 15;
    out[2 * pair + 1] = bytes[pair] >> 4;
  }
  if (count % 2 == 1) out[count - 1] = bytes[count / 2] & 15;
}

/** Calls take(rows, number of the first, number behind the last) with the scales of one row after another. */
template <typename Take>
void for_scales(const TensorSource& source, size_t first_row, size_t row_count, const Take& take) {
  const FileTensor& tensor = std::get<FileTensor>(source.origin);
  RowScales rows(*tensor.scales, source.columns, bits_of(tensor.dtype));
  // Columns that have an order of their own have all scales, from the first on.
  const bool ordered = tensor.scales->groups.has_value();
  const size_t first = ordered ? 0 : rows.number_of(0), last = ordered ? (source.columns - 1) / tensor.scales->block_columns : rows.number_of(source.columns - 1);
  for (size_t row = first_row; row < first_row + row_count; ++row) {
    rows.go_to(row);
    take(rows, first, last + 1);
  }
}

}  // namespace

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
  const std::vector<uint32_t> groups = read_groups(scales, source.columns);
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
