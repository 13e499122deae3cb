#pragma once

#include <cstddef>
#include <vector>

#include "model/tensor.h"
#include "runtime/pool.h"

namespace switchyard {

/** Sum of products in float64. */
double dot(const double* a, const double* b, size_t count);

/** How the elements of a tensor enter: rounded to BF16, as experts compute, or as they are stored, as gates do. */
enum class Precision { bf16, stored };

/** The whole tensor as float64. */
std::vector<double> read_doubles(const TensorSource& source, Precision precision = Precision::bf16);

/**
 * products[i * matrix.rows + r] = dot(matrix row r, inputs + i * matrix.columns) for `input_count` inputs. The
 * matrix is read once, tile by tile, over the pool: it need not fit in memory as float64.
 */
std::vector<double> multiply(const TensorSource& matrix, const double* inputs, size_t input_count, Precision precision,
                             ThreadPool& pool);

/** The largest 2-norm of a row. */
double largest_row_norm(const TensorSource& matrix, Precision precision, ThreadPool& pool);

}  // namespace switchyard
