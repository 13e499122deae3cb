#include "experts/cpu/weights.h"

#include <emmintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/bf16.h"

namespace switchyard::cpu {
namespace {

/** Of the scales of rows. */
size_t scales_of(const MatrixSource& matrix) { return divide_up(matrix.columns, matrix.packed->columns_per_scale); }

std::vector<uint32_t> order_of(const MatrixSource& matrix) { return matrix.packed->order ? matrix.packed->order() : std::vector<uint32_t>(); }

/** Scales far from these would take sums out of the normal floats. */
bool is_usual(float scale) { return scale == 0 || (std::abs(scale) > 0x1p-100f && std::abs(scale) < 0x1p100f); }

/** Columns of a panel that are filled at once: rows lie powers of two apart, and many such streams share few cache sets. */
constexpr size_t columns_together = 8;

/** Eight columns of a group: elements, or a code in each. */
template <typename Element>
using Columns = Element[columns_together][group_depth];
using Codes = Columns<uint8_t>;

__m128i load(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
void store(__m128i value, void* to) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }

/** Takes `given` elements of each of `rows` rows that are `depth` long; the others are `nothing`. */
template <typename Element>
void take_columns(const Element* from, size_t depth, size_t rows, size_t given, Element nothing, Columns<Element>& columns) {
  if (rows == columns_together && given == group_depth) {
    for (size_t row = 0; row < columns_together; ++row) std::memcpy(columns[row], from + row * depth, sizeof columns[row]);
    return;
  }
  std::fill_n(&columns[0][0], columns_together * group_depth, nothing);
  for (size_t row = 0; row < rows; ++row) std::copy_n(from + row * depth, given, columns[row]);
}

/** Eight rows of eight words: the columns. */
void transpose_words(__m128i (&rows)[8]) {
  __m128i pairs[8], fours[8];
  for (int i = 0; i < 4; ++i) {
    pairs[i * 2] = _mm_unpacklo_epi16(rows[i * 2], rows[i * 2 + 1]);
    pairs[i * 2 + 1] = _mm_unpackhi_epi16(rows[i * 2], rows[i * 2 + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      fours[i * 4 + half * 2] = _mm_unpacklo_epi32(pairs[i * 4 + half], pairs[i * 4 + half + 2]);
      fours[i * 4 + half * 2 + 1] = _mm_unpackhi_epi32(pairs[i * 4 + half], pairs[i * 4 + half + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i * 2] = _mm_unpacklo_epi64(fours[i], fours[i + 4]);
    rows[i * 2 + 1] = _mm_unpackhi_epi64(fours[i], fours[i + 4]);
  }
}

/** Writes codes of 8 bits as columns of a group; `to` is the place of the first pair of the first of them, `stride` from pair to pair in bytes. */
void place_bytes(const Codes& codes, uint8_t* to, size_t stride) {
  for (size_t first = 0; first < group_depth / 2; first += 8) {
    __m128i words[8];
    for (size_t column = 0; column < 8; ++column) words[column] = load(codes[column] + first * 2);
    transpose_words(words);
    for (size_t pair = 0; pair < 8; ++pair) store(words[pair], to + (first + pair) * stride);
  }
}

/** The same with codes of 4 bits, two of them in a byte. */
void place_halves(const Codes& codes, uint8_t* to, size_t stride) {
  for (size_t first = 0; first < group_depth / 2; first += 8) {
    __m128i words[8];
    for (size_t column = 0; column < 8; ++column) {
      const __m128i both = load(codes[column] + first * 2);
      words[column] = _mm_and_si128(_mm_or_si128(both, _mm_srli_epi16(both, 4)), _mm_set1_epi16(0xff));
    }
    transpose_words(words);
    for (size_t pair = 0; pair < 8; ++pair) _mm_storel_epi64(reinterpret_cast<__m128i*>(to + (first + pair) * stride), _mm_packus_epi16(words[pair], words[pair]));
  }
}

/** Four rows of four lanes: the columns. */
void transpose_lanes(__m128i (&rows)[4]) {
  const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpacklo_epi32(rows[2], rows[3]);
  const __m128i c = _mm_unpackhi_epi32(rows[0], rows[1]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
  rows[0] = _mm_unpacklo_epi64(a, b);
  rows[1] = _mm_unpackhi_epi64(a, b);
  rows[2] = _mm_unpacklo_epi64(c, d);
  rows[3] = _mm_unpackhi_epi64(c, d);
}

/** Writes BF16 as columns of a group; as place_bytes, in elements. */
void place_elements(const Columns<uint16_t>& elements, uint16_t* to, size_t stride) {
  for (size_t first = 0; first < group_depth / 2; first += 4) {
    for (size_t column = 0; column < columns_together; column += 4) {
      __m128i lanes[4];
      for (size_t i = 0; i < 4; ++i) lanes[i] = load(elements[column + i] + first * 2);
      transpose_lanes(lanes);
      for (size_t pair = 0; pair < 4; ++pair) store(lanes[pair], to + (first + pair) * stride + column * 2);
    }
  }
}

/** Writes codes of 8 bits as columns of a group, in blocks of four columns and two pairs of k; `stride` from block to block of a column. */
void place_byte_blocks(const Codes& codes, uint8_t* to, size_t stride) {
  for (size_t first = 0; first < group_depth / 2; first += 8) {
    __m128i words[8];
    for (size_t column = 0; column < 8; ++column) words[column] = load(codes[column] + first * 2);
    transpose_words(words);
    for (size_t pair = 0; pair < 8; pair += 2, to += stride) {
      store(_mm_unpacklo_epi64(words[pair], words[pair + 1]), to);
      store(_mm_unpackhi_epi64(words[pair], words[pair + 1]), to + 16);
    }
  }
}

/** Of 16 codes of 4 bits: two lanes each have a half of what eight of them fill, those of even k in its lower half. */
__m128 halves_of_lanes(__m128i codes) {
  const __m128i places = _mm_set1_epi64x(0x1000010000100001);
  const __m128i even = _mm_madd_epi16(_mm_and_si128(codes, _mm_set1_epi16(0xff)), places);
  const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(codes, 8), places);
  return _mm_castsi128_ps(_mm_or_si128(even, _mm_slli_epi32(odd, 16)));
}

/** The same with codes of 4 bits, in blocks of four columns and eight k. */
void place_half_blocks(const Codes& codes, uint8_t* to, size_t stride) {
  for (size_t first = 0; first < columns_together; first += 4) {
    __m128i lanes[4];
    for (size_t column = 0; column < 4; ++column) {
      const __m128 lower = halves_of_lanes(load(codes[first + column])), upper = halves_of_lanes(load(codes[first + column] + 16));
      lanes[column] = _mm_castps_si128(_mm_or_ps(_mm_shuffle_ps(lower, upper, 0x88), _mm_shuffle_ps(lower, upper, 0xdd)));
    }
    transpose_lanes(lanes);
    for (size_t run = 0; run < 4; ++run) store(lanes[run], to + run * stride + first * sizeof(uint32_t));
  }
}

}  // namespace

std::optional<PackedForm> packed_form_of(std::span<const MatrixSource* const> matrices) {
  const std::optional<PackedSource>& first = matrices[0]->packed;
  if (!first) return std::nullopt;
  const size_t columns = first->columns_per_scale;
  if (columns % group_depth != 0 && columns < matrices[0]->columns) return std::nullopt;
  PackedForm form{.type = first->type, .step_groups = step_groups_max, .narrow = true, .shifted = false, .column_order = order_of(*matrices[0])};
  if (first->order && form.column_order.empty()) return std::nullopt;
  for (const MatrixSource* const matrix : matrices) {
    if (!matrix->packed || !matrix->packed->same_form(*first) || order_of(*matrix) != form.column_order) return std::nullopt;
    std::vector<float> scales(matrix->rows * scales_of(*matrix));
    matrix->packed->scales(0, matrix->rows, scales.data());
    if (!std::ranges::all_of(scales, [&](float scale) { return is_usual(scale); })) return std::nullopt;
    form.narrow = form.narrow && std::ranges::all_of(scales, [](float scale) { return bf16_to_float(float_to_bf16(scale)) == scale; });
    form.shifted = form.shifted || matrix->packed->zeros;
  }
  if (columns >= matrices[0]->columns) return form;
  const size_t groups_per_scale = columns / group_depth;
  form.step_groups = groups_per_scale <= step_groups_max ? groups_per_scale : std::gcd(groups_per_scale, step_groups_max);
  return form;
}

PackedWeights::PackedWeights(const PanelOrder& order, size_t panels, size_t groups, std::optional<PackedForm> form)
    : order_(order), panels_(panels), groups_(groups), form_(std::move(form)) {}

PackedMemory PackedWeights::allocate(std::initializer_list<PackedWeights*> products) {
  size_t bytes = 0;
  for (const PackedWeights* const product : products) bytes += product->bytes();
  PackedMemory memory(bytes, "expert weights");
  uint8_t* at = memory.as<uint8_t>();
  for (PackedWeights* const product : products) {
    product->memory_ = at;
    at += product->bytes();
  }
  return memory;
}

size_t PackedWeights::bytes() const {
  const size_t beside = form_ ? scale_bytes() + (form_->shifted ? scale_count() : 0) : 0;
  return divide_up(panels_ * groups_ * group_bytes() + beside, page_bytes) * page_bytes;
}

Split PackedWeights::cut(size_t part_groups) const {
  const size_t whole = std::lcm(order_.columns / group_depth, form_ ? form_->step_groups : 1);
  return Split::into_parts_of(part_groups, groups_, whole);
}

size_t PackedWeights::element(size_t panel, const Split& parts, size_t part) const {
  const size_t band = bands().part_of(panel);
  const size_t first = bands().begin(band);
  return (first * groups_ + parts.begin(part) * bands().size(band) + (panel - first) * parts.size(part)) * order_.group_elements();
}

template <typename Element, typename Place>
void PackedWeights::place_rows(size_t panel, const Element* rows, size_t count, size_t depth, Element nothing, const Place& place) const {
  const Split parts = this->parts();
  for (size_t first = 0; first < count; first += columns_together, rows += columns_together * depth) {
    for (size_t part = 0; part < parts.parts; ++part) {
      size_t at = element(panel, parts, part);
      for (size_t group = parts.begin(part); group < parts.begin(part + 1); ++group, at += order_.group_elements()) {
        const size_t k = std::min(group * group_depth, depth);
        Columns<Element> columns;
        take_columns(rows + k, depth, std::min(columns_together, count - first), std::min(group_depth, depth - k), nothing, columns);
        place(columns, first, at);
      }
    }
  }
}

template <typename Scale>
Scale* PackedWeights::scales() const {
  return reinterpret_cast<Scale*>(memory_ + panels_ * groups_ * group_bytes());
}

int8_t* PackedWeights::zeros() const { return scales<int8_t>() + scale_bytes(); }

PackedPanel PackedWeights::packed_part(size_t panel, const Split& parts, size_t part) const {
  const Scales scales{.narrow = form_->narrow ? PackedWeights::scales<uint16_t>() + first_scale(panel) : nullptr,
                      .wide = form_->narrow ? nullptr : PackedWeights::scales<float>() + first_scale(panel),
                      .zeros = form_->shifted ? zeros() + first_scale(panel) : nullptr,
                      .columns = order_.columns,
                      .groups = form_->step_groups};
  return {.panel = panel,
          .type = form_->type,
          .codes = at(panel, parts, part),
          .scales = scales.from(parts.begin(part))};
}

bool PackedWeights::fill(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  if (first_row >= source.rows) return true;
  count = std::min(count, source.rows - first_row);
  if (form_) return fill_codes(panel, column, source, first_row, count);
  const size_t depth = source.columns;
  rows_.resize(count * depth);
  source.read(first_row, count, rows_.data());

  place_rows<uint16_t>(panel, rows_.data(), count, depth, 0, [&](const Columns<uint16_t>& columns, size_t first, size_t at) {
    place_elements(columns, reinterpret_cast<uint16_t*>(memory_) + at + order_.element(column + first, 0), order_.tile_columns * 2);
  });
  return true;
}

bool PackedWeights::fill_codes(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  const size_t depth = source.columns;
  // What pads a row of codes that stand above their value is nothing, not the least.
  const uint8_t nothing = form_->type == CodeType::u4 ? 8 : 0;
  // Room for an even number of columns.
  codes_.resize(count * depth + 1);
  if (!source.packed->codes(first_row, count, codes_.data())) return false;
  const size_t bits = bits_of(form_->type);
  const size_t stride = order_.tile_columns * order_.code_run_bits(bits) / 8;
  const auto place = order_.code_blocks ? (bits == 8 ? place_byte_blocks : place_half_blocks) : bits == 8 ? place_bytes : place_halves;
  place_rows(panel, codes_.data(), count, depth, nothing, [&](const Codes& columns, size_t first, size_t at) {
    place(columns, memory_ + at * bits / 8 + order_.code_byte(column + first, bits), stride);
  });
  fill_scales(panel, column, source, first_row, count);
  return true;
}

void PackedWeights::fill_scales(size_t panel, size_t column, const MatrixSource& source, size_t first_row, size_t count) {
  const size_t row_scales = scales_of(source);
  std::vector<float> values(count * row_scales);
  source.packed->scales(first_row, count, values.data());
  std::vector<int8_t> shifts(source.packed->zeros ? values.size() : 0);
  if (source.packed->zeros) source.packed->zeros(first_row, count, shifts.data());
  const size_t step_columns = form_->step_groups * group_depth;
  for (size_t row = 0; row < count; ++row) {
    for (size_t step = 0; step < steps(); ++step) {
      const size_t its_scale = std::min(step * step_columns / source.packed->columns_per_scale, row_scales - 1);
      const float scale = values[row * row_scales + its_scale] / unit_of(form_->type);
      const size_t at = first_scale(panel) + step * order_.columns + column + row;
      if (form_->narrow) scales<uint16_t>()[at] = float_to_bf16(scale);
      else scales<float>()[at] = scale;
      if (!shifts.empty()) zeros()[at] = shifts[row * row_scales + its_scale];
    }
  }
}

}  // namespace switchyard::cpu
