#include <algorithm>
#include <array>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "experts/cuda/kernels.h"
#include "experts/cuda/layout.h"
#include "experts/cuda/products.h"
#include "kernels/bf16.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

/** Rows that algorithms are chosen for: enough for the tensor cores to be the limit. */
constexpr size_t chosen_rows = 1024;
constexpr int candidates_max = 64;
/** Of a trial, as many as a batch can have. */
constexpr size_t trial_rows = batch_rows_max;
/** Numbers of rows after which a trial waits to see whether all were right so far: an algorithm that will not do ends soon. */
constexpr size_t counts_per_look = 32;
/** Rows that differ; the others repeat them, since a row has the same bits wherever it is. */
constexpr size_t trial_rows_made = trial_rows / 4;

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

/** cuBLASLt counts columns where there are rows here. */
struct Tile {
  cublasLtMatmulTile_t id;
  size_t rows;
};
constexpr Tile tiles[] = {
// Made from cuBLASLt's header: cuda.cmake.
#include "cublaslt_tiles.inc"
};

/** Rows of an algorithm's tiles; 0: it does not tell, or they are new. */
size_t tile_rows_of(const cublasLtMatmulAlgo_t& algorithm) {
  uint32_t id = 0;
  size_t written = 0;
  check_blas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &id, sizeof id, &written), "to describe an algorithm");
  const auto* const found = std::ranges::find(tiles, static_cast<cublasLtMatmulTile_t>(id), &Tile::id);
  return found == std::end(tiles) ? 0 : found->rows;
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

/** Runs algorithms on random rows, and compares on the device: a trial of many rows takes a second, and not a minute. */
struct Product::Trial {
  Trial(const Product& product, const uint16_t* weights, cudaStream_t stream)
      : product(product), weights(weights), stream(stream),
        rows(trial_rows * product.size_.input_stride * sizeof(uint16_t), "a trial of algorithms"),
        whole(trial_rows * product.size_.output_stride * sizeof(uint16_t), "a trial of algorithms"),
        part(whole.bytes(), "a trial of algorithms"),
        workspace(workspace_bytes, "a trial of algorithms"),
        differs(sizeof(uint32_t), "a trial of algorithms") {
    const auto values = random_rows(trial_rows_made * product.size_.input_stride);
    for (size_t row = 0; row < trial_rows; row += trial_rows_made) {
      check(cudaMemcpyAsync(rows.as<uint16_t>() + row * product.size_.input_stride, values.data(), values.size() * sizeof(uint16_t),
                            cudaMemcpyHostToDevice, stream),
            "to copy rows in");
    }
  }

  /** Sums of `count` rows from `first` on, in poisoned memory. False if the algorithm does not take that many. */
  bool compute(const cublasLtMatmulAlgo_t& algorithm, size_t first, size_t count, const DeviceMemory& sums) const {
    const ProductSize& size = product.size_;
    check(cudaMemsetAsync(sums.as<void>(), 0xff, count * size.output_stride * sizeof(uint16_t), stream), "to set memory");
    const cublasStatus_t status = product.try_run(algorithm, weights, rows.as<uint16_t>() + first * size.input_stride, sums.as<uint16_t>(), count,
                                                  workspace.as<void>(), stream);
    if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE) return false;
    check_blas(status, "to multiply");
    return true;
  }

  void expect_same(const uint16_t* sums, size_t first, size_t count) const {
    const size_t stride = product.size_.output_stride;
    compare(whole.as<uint16_t>() + first * stride, sums, count * stride, differs.as<uint32_t>(), stream);
  }

  bool same_bits(const cublasLtMatmulAlgo_t& algorithm) const {
    check(cudaMemsetAsync(differs.as<void>(), 0, differs.bytes(), stream), "to set memory");
    if (!compute(algorithm, 0, trial_rows, whole)) return false;
    for (size_t row = trial_rows_made; row < trial_rows; row += trial_rows_made) {
      expect_same(whole.as<uint16_t>(), row, trial_rows_made);
    }
    // Each number of rows, at another place.
    for (size_t count = 1; count < trial_rows; ++count) {
      const size_t first = count * 7 % (trial_rows - count + 1);
      if (!compute(algorithm, first, count, part)) return false;
      expect_same(part.as<uint16_t>(), first, count);
      if (count % counts_per_look == 0 && !all_same()) return false;
    }
    return all_same();
  }

  /** Waits. */
  bool all_same() const {
    // A copy to memory that is not page-locked returns when it is done.
    uint32_t found = 0;
    check(cudaMemcpyAsync(&found, differs.as<void>(), sizeof found, cudaMemcpyDeviceToHost, stream), "to copy out, or while it multiplied");
    return found == 0;
  }

  const Product& product;
  const uint16_t* weights;
  cudaStream_t stream;
  DeviceMemory rows, whole, part, workspace, differs;
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
  // In cuBLASLt's order, but tiles of many rows come last.
  for (const bool small_tiles : {true, false}) {
    for (int i = 0; i < found; ++i) {
      algorithm_ = candidates[i].algo;
      if (candidates[i].state != CUBLAS_STATUS_SUCCESS || splits_depth(algorithm_)) continue;
      const size_t tile_rows = tile_rows_of(algorithm_);
      if ((tile_rows > 0 && tile_rows <= tile_rows_max) != small_tiles || !trial.same_bits(algorithm_)) continue;
      if (tile_rows > 0) tile_rows_ = tile_rows;
      return;
    }
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
