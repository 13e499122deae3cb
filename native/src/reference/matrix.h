#pragma once

#include <cstddef>
#include <vector>

#include "model/tensor.h"
#include "runtime/pool.h"

namespace switchyard {

/** Sum of products in float64. */
double dot(const double* a, const double* b, size_t count);

/** The whole tensor as float64. */
std::vector<double> read_doubles(const TensorSource& source);

/**
 * products[i * matrix.rows + r] = dot(matrix row r, inputs + i * matrix.columns) for `input_count` inputs. The
 * matrix is read once, tile by tile, over the pool: it need not fit in memory as float64.
 */
std::vector<double> multiply(const TensorSource& matrix, const double* inputs, size_t input_count, ThreadPool& pool);

}  // namespace switchyard
