#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "experts/cuda/products.h"
#include "kernels/bf16.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

/** Rows that algorithms are chosen for: enough for the tensor cores to be the limit. */
constexpr size_t chosen_rows = 1024;
constexpr int candidates_max = 16;
/** Rows of a trial, as many as a batch can have, and its parts: first row and count. */
constexpr size_t trial_rows = 2048;
/** Rows that differ; the others repeat them, since a row has the same bits wherever it is. */
constexpr size_t trial_rows_made = 512;
struct Part {
  size_t first;
  size_t count;
};
constexpr std::array<Part, 7> trial_parts{{{0, 1}, {3, 7}, {301, 130}, {2047, 1}, {64, 448}, {777, 1000}, {1024, 1024}}};

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(status == CUBLAS_STATUS_ALLOC_FAILED ? Code::resource_exhausted : Code::device_lost,
              std::string("cuBLASLt failed ") + what + ": " + cublasLtGetStatusString(status));
}

cublasLtMatrixLayoutOpaque_t layout(size_t rows, size_t columns, size_t stride) {
  cublasLtMatrixLayoutOpaque_t result;
  check_blas(cublasLtMatrixLayoutInit(&result, CUDA_R_16BF, rows, columns, static_cast<int64_t>(stride)), "to describe a matrix");
  return result;
}

/** The three matrices as cuBLASLt sees them: column by column, so that rows become columns. */
struct Layouts {
  Layouts(const ProductSize& size, size_t rows)
      : weights(layout(size.depth, size.outputs, size.depth)),
        input(layout(size.depth, rows, size.input_stride)),
        output(layout(size.outputs, rows, size.output_stride)) {}

  cublasLtMatrixLayoutOpaque_t weights, input, output;
};

class Preference {
 public:
  Preference() {
    check_blas(cublasLtMatmulPreferenceCreate(&preference_), "to make a preference");
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{workspace_bytes});
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE});
    // Segments begin at any row, and rows at any 16 bytes.
    for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                 CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      set(attribute, uint32_t{16});
    }
  }
  ~Preference() { cublasLtMatmulPreferenceDestroy(preference_); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  operator cublasLtMatmulPreference_t() const { return preference_; }

 private:
  template <typename Value>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, Value value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof value), "to set a preference");
  }

  cublasLtMatmulPreference_t preference_ = nullptr;
};

/** Whether the depth of a product is cut into parts that are summed apart. */
bool splits_depth(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t parts = 0;
  uint32_t reduction = 0;
  size_t written = 0;
  check_blas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts, &written),
             "to describe an algorithm");
  check_blas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction, sizeof reduction, &written),
             "to describe an algorithm");
  return (parts != 0 && parts != 1) || reduction != CUBLASLT_REDUCTION_SCHEME_NONE;
}

std::vector<uint16_t> random_rows(size_t elements) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<uint16_t> rows(elements);
  for (uint16_t& element : rows) element = float_to_bf16(uniform(random));
  return rows;
}

}  // namespace

Blas::Blas() { check_blas(cublasLtCreate(&handle_), "to start"); }
Blas::~Blas() { cublasLtDestroy(handle_); }

/** Runs algorithms on random rows, whole and in parts. */
struct Product::Trial {
  Trial(const Product& product, const uint16_t* weights, cudaStream_t stream)
      : product(product), weights(weights), stream(stream),
        rows(trial_rows * product.size_.input_stride * sizeof(uint16_t), "a trial of algorithms"),
        sums(trial_rows * product.size_.output_stride * sizeof(uint16_t), "a trial of algorithms"),
        workspace(workspace_bytes, "a trial of algorithms") {
    const auto values = random_rows(trial_rows_made * product.size_.input_stride);
    for (size_t row = 0; row < trial_rows; row += trial_rows_made) {
      check(cudaMemcpyAsync(rows.as<uint16_t>() + row * product.size_.input_stride, values.data(), values.size() * sizeof(uint16_t),
                            cudaMemcpyHostToDevice, stream),
            "to copy rows in");
    }
  }

  /**
   * The sums of some rows, in poisoned memory; empty if the algorithm does not take that many. A copy to memory that is not
   * page-locked returns when it is done, and one from there when it has read it all.
   */
  std::vector<uint16_t> compute(const cublasLtMatmulAlgo_t& algorithm, const Part& part) const {
    const ProductSize& size = product.size_;
    check(cudaMemsetAsync(sums.as<uint16_t>(), 0xff, sums.bytes(), stream), "to set memory");
    const cublasStatus_t status = product.try_run(algorithm, weights, rows.as<uint16_t>() + part.first * size.input_stride,
                                                  sums.as<uint16_t>(), part.count, workspace.as<void>(), stream);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return {};
    check_blas(status, "to multiply");
    std::vector<uint16_t> result(part.count * size.outputs);
    check(cudaMemcpy2DAsync(result.data(), size.outputs * sizeof(uint16_t), sums.as<uint16_t>(), size.output_stride * sizeof(uint16_t),
                            size.outputs * sizeof(uint16_t), part.count, cudaMemcpyDeviceToHost, stream),
          "to copy rows out, or while it multiplied");
    return result;
  }

  bool same_bits(const cublasLtMatmulAlgo_t& algorithm) const {
    const auto whole = compute(algorithm, {0, trial_rows});
    if (whole.empty()) return false;
    const auto as_in_whole = [&](const std::vector<uint16_t>& sums, size_t first_row) {
      return !sums.empty() && std::memcmp(sums.data(), whole.data() + first_row * product.size_.outputs, sums.size() * sizeof(uint16_t)) == 0;
    };
    const size_t made = trial_rows_made * product.size_.outputs;
    const auto repeats = [&](size_t element) { return std::memcmp(whole.data(), whole.data() + element, made * sizeof(uint16_t)) == 0; };
    for (size_t element = made; element < whole.size(); element += made) {
      if (!repeats(element)) return false;
    }
    return std::all_of(trial_parts.begin(), trial_parts.end(), [&](const Part& part) { return as_in_whole(compute(algorithm, part), part.first); });
  }

  const Product& product;
  const uint16_t* weights;
  cudaStream_t stream;
  DeviceMemory rows, sums, workspace;
};

Product::Product(const Blas& blas, const ProductSize& size, const uint16_t* weights, cudaStream_t stream) : blas_(blas), size_(size) {
  check_blas(cublasLtMatmulDescInit(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "to describe a product");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check_blas(cublasLtMatmulDescSetAttribute(&description_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed), "to describe a product");
  Layouts layouts(size, chosen_rows);
  const Preference preference;
  std::array<cublasLtMatmulHeuristicResult_t, candidates_max> candidates;
  int found = 0;
  check_blas(cublasLtMatmulAlgoGetHeuristic(blas_, &description_, &layouts.weights, &layouts.input, &layouts.output, &layouts.output,
                                            preference, candidates_max, candidates.data(), &found),
             "to choose an algorithm");
  const Trial trial(*this, weights, stream);
  for (int i = 0; i < found; ++i) {
    algorithm_ = candidates[i].algo;
    if (candidates[i].state == CUBLAS_STATUS_SUCCESS && !splits_depth(algorithm_) && trial.same_bits(algorithm_)) return;
  }
  throw Error(Code::internal, "none of " + std::to_string(found) + " cuBLASLt algorithms for " + std::to_string(size.outputs) + " outputs of depth " +
                                  std::to_string(size.depth) + " gives a row the same bits whatever is beside it");
}

cublasStatus_t Product::try_run(const cublasLtMatmulAlgo_t& algorithm, const uint16_t* weights, const uint16_t* rows, uint16_t* sums,
                                size_t row_count, void* workspace, cudaStream_t stream) const {
  constexpr float one = 1, zero = 0;
  Layouts layouts(size_, row_count);
  auto description = description_;
  return cublasLtMatmul(blas_, &description, &one, weights, &layouts.weights, rows, &layouts.input, &zero, sums, &layouts.output, sums,
                        &layouts.output, &algorithm, workspace, workspace_bytes, stream);
}

void Product::run(const uint16_t* weights, const uint16_t* rows, uint16_t* sums, size_t row_count, void* workspace, cudaStream_t stream) const {
  check_blas(try_run(algorithm_, weights, rows, sums, row_count, workspace, stream), "to multiply");
}

}  // namespace switchyard::cuda
