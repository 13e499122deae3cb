#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace switchyard {

/** How the weights of a matrix are coded: floats of 8 and 4 bits, integers, and integers of 4 bits that stand 8 above their value. */
enum class CodeType { f8_e4m3, f4_e2m1, i8, u4 };

constexpr size_t bits_of(CodeType type) { return type == CodeType::f8_e4m3 || type == CodeType::i8 ? 8 : 4; }

/** A matrix as codes that are multiplied by scales, each for so many columns of a row from the first on. */
struct PackedSource {
  CodeType type;
  size_t columns_per_scale;
  /** Reads which column of the matrix each column of codes is; nothing: no order brings those of a scale together. Null: they are as in the matrix. Called before codes are read. */
  std::function<std::vector<uint32_t>()> order = nullptr;
  /** Writes [row_count, columns] codes, a byte each, to `out`. False: one of them, which is written as any, stands for NaN. */
  std::function<bool(size_t first_row, size_t row_count, uint8_t* out)> codes;
  /** Writes [row_count, scales of a row] to `out`. */
  std::function<void(size_t first_row, size_t row_count, float* out)> scales;
  /** The same with what is taken from the values of codes before they are multiplied, their zero points; null: nothing. */
  std::function<void(size_t first_row, size_t row_count, int8_t* out)> zeros = nullptr;

  bool same_form(const PackedSource& other) const { return type == other.type && columns_per_scale == other.columns_per_scale; }
};

}  // namespace switchyard
