#include <cublasLt.h>

#include <algorithm>
#include <vector>

#include "device.h"
#include "kernels/bf16.h"

namespace fake_cuda {

struct Blas {};
struct Preference {};

namespace {

constexpr size_t tile_outputs = 64;

/** Outputs side by side, each in the order of the depth; how the real library sums is not known. `coarse` rounds each sum to BF16. */
__attribute__((target("avx2"))) void compute_tile(const float* weights, size_t depth, const float* row, bool coarse, float* sums) {
  float results[tile_outputs] = {};
  for (size_t i = 0; i < depth; ++i) {
    const float value = row[i];
    for (size_t output = 0; output < tile_outputs; ++output) results[output] += weights[i * tile_outputs + output] * value;
    if (!coarse) continue;
    for (float& result : results) result = switchyard::bf16_to_float(switchyard::float_to_bf16(result));
  }
  for (size_t output = 0; output < tile_outputs; ++output) sums[output] = results[output];
}

void to_floats(const uint16_t* values, size_t count, size_t stride, float* out) {
  for (size_t i = 0; i < count; ++i) out[i * stride] = switchyard::bf16_to_float(values[i]);
}

using Layout = cublasLtMatrixLayoutOpaque_t;

void compute(const uint16_t* weights, const Layout& a, const uint16_t* rows, const Layout& b, uint16_t* sums, const Layout& d, bool coarse) {
  // Used with the device's lock. Outputs beyond the last one are summed too, whatever they are.
  static std::vector<float> tile, row_values;
  tile.resize(std::max<size_t>(tile.size(), a.rows * tile_outputs));
  row_values.resize(std::max<size_t>(row_values.size(), a.rows));
  float results[tile_outputs];
  for (size_t first = 0; first < d.rows; first += tile_outputs) {
    const size_t count = d.rows - first < tile_outputs ? d.rows - first : tile_outputs;
    for (size_t output = 0; output < count; ++output) {
      to_floats(weights + (first + output) * static_cast<size_t>(a.stride), a.rows, tile_outputs, tile.data() + output);
    }
    for (size_t row = 0; row < d.columns; ++row) {
      to_floats(rows + row * static_cast<size_t>(b.stride), a.rows, 1, row_values.data());
      compute_tile(tile.data(), a.rows, row_values.data(), coarse, results);
      for (size_t output = 0; output < count; ++output) {
        sums[row * static_cast<size_t>(d.stride) + first + output] = switchyard::float_to_bf16(results[output]);
      }
    }
  }
}

size_t extent(const cublasLtMatrixLayoutOpaque_t& layout) {
  return layout.columns == 0 ? 0 : ((layout.columns - 1) * static_cast<size_t>(layout.stride) + layout.rows) * sizeof(uint16_t);
}

}  // namespace
}  // namespace fake_cuda

using namespace fake_cuda;

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "success";
    case CUBLAS_STATUS_ALLOC_FAILED: return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the function failed to launch on the GPU";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "the functionality requested is not supported";
  }
  return "unknown";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  *handle = new Blas;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType_t type, uint64_t rows, uint64_t columns, int64_t stride) {
  if (type != CUDA_R_16BF || stride < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  *layout = {rows, columns, stride};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t description, cublasComputeType_t, cudaDataType_t) {
  *description = {CUBLAS_OP_N};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description, cublasLtMatmulDescAttributes_t, const void* value, size_t) {
  description->transposed_a = *static_cast<const cublasOperation_t*>(value);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new Preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, const void*, size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

// Offers those that may split the depth too, although they are asked for less: the backend checks it.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int wanted,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = 0;
  for (const uint64_t number : device().options.algorithms) {
    if (*found < wanted) results[(*found)++] = {{number}, 0, CUBLAS_STATUS_SUCCESS};
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm, cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, size_t, size_t* written) {
  const auto value_of = [&]() -> uint32_t {
    if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) return algorithm->number == splits_depth ? 4 : 0;
    if (attribute != CUBLASLT_ALGO_CONFIG_TILE_ID) return 0;
    if (algorithm->number == steady_in_tall_tiles) return CUBLASLT_MATMUL_TILE_128x256;
    return algorithm->number == steady_in_wide_tiles ? CUBLASLT_MATMUL_TILE_320x128 : CUBLASLT_MATMUL_TILE_64x8;
  };
  *static_cast<uint32_t*>(value) = value_of();
  *written = sizeof(uint32_t);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t description, const void*, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void*, const void*, cublasLtMatrixLayout_t, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  const size_t row_count = d_layout->columns;
  if (description->transposed_a != CUBLAS_OP_T || a_layout->rows != b_layout->rows || a_layout->columns != d_layout->rows ||
      b_layout->columns != row_count)
    return CUBLAS_STATUS_INVALID_VALUE;
  if (algorithm->number == refuses_single_rows && row_count == 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  const bool coarse = (algorithm->number == depends_on_rows && row_count < 16) || (algorithm->number == differs_at_37_rows && row_count == 37);
  const auto* const weights = static_cast<const uint16_t*>(a);
  const auto* const rows = static_cast<const uint16_t*>(b);
  auto* const sums = static_cast<uint16_t*>(d);
  const auto run = [=, used = algorithm->number, a_layout = *a_layout, b_layout = *b_layout, d_layout = *d_layout](const Moment& moment) {
    ++device().counts.products[used];
    const bool may_run = reads(moment, weights, extent(a_layout)) && reads(moment, rows, extent(b_layout)) && writes(moment, sums, extent(d_layout)) &&
                         writes(moment, workspace, workspace_bytes);
    if (!may_run) return;
    compute(weights, a_layout, rows, b_layout, sums, d_layout, coarse);
  };
  return launch(stream, "a product", run) == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
