#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/tensor.h"

namespace switchyard {

/** Columns to a scale, from the first on, of a source whose rows can be read as codes; 0: it is none, or scales lie in another way. */
size_t columns_per_scale(const TensorSource& source);
/** Whether which column has which scale is told for each, in such a source; if so, the order of columns in which they lie as said, or nothing where none does. */
bool has_groups(const TensorSource& source);
std::vector<uint32_t> read_column_order(const TensorSource& source);
/** Rows of such a source as codes, a byte each; those that stand 128 above their value become signed. */
void read_codes(const TensorSource& source, size_t first_row, size_t row_count, uint8_t* out);
/** Their scales, as many a row as there are blocks of columns. */
void read_scales(const TensorSource& source, size_t first_row, size_t row_count, float* out);
/** Whether such a source has zero points, -128 to 127 each, and those, in the order of the scales. */
bool has_zeros(const TensorSource& source);
void read_zeros(const TensorSource& source, size_t first_row, size_t row_count, int8_t* out);

}  // namespace switchyard
