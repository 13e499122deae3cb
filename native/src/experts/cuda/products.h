#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "experts/cuda/device.h"

namespace switchyard::cuda {

/** cuBLASLt on the current device. Thread-safe. */
class Blas {
 public:
  Blas();
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  operator cublasLtHandle_t() const { return handle_; }

 private:
  cublasLtHandle_t handle_ = nullptr;
};

/** The most rows of a tile, if that can be had: up to one less are computed in vain for each segment. */
constexpr size_t tile_rows_max = 128;

/** Memory that one product at a time may use. */
constexpr size_t workspace_bytes = size_t{32} << 20;

/** Sizes of a product, in BF16 elements; strides are from row to row. All are multiples of 8. */
struct ProductSize {
  size_t outputs;
  size_t depth;
  size_t input_stride;
  size_t output_stride;
};

/**
 * sums [rows, outputs] = rows [rows, depth] · Wᵀ for weights W [outputs, depth], summed in float32 and rounded to BF16.
 *
 * A row's bits must not depend on the rows beside it. One algorithm is chosen for good when the first expert of a shape
 * is loaded, by cuBLASLt's own order for a fixed number of rows, so that every process with the same device and library
 * chooses the same one; the first of those whose tiles are known to have at most `tile_rows_max` rows, if one will do, because
 * segments are often that small. Within one algorithm each output element is summed by one thread block over the whole depth, in
 * steps that depend on the algorithm alone; only splits of the depth would change that, and these are excluded. That is
 * no promise of cuBLASLt, so it is tried too: an algorithm is taken only if rows come out with the same bits among every number of
 * rows that a batch can have, at different places.
 */
class Product {
 public:
  /** `weights` are those of any expert of the shape, to try algorithms with. Waits for the stream. Throws INTERNAL if no algorithm will do. */
  Product(const Blas& blas, const ProductSize& size, const uint16_t* weights, cudaStream_t stream);

  /** Rows of the algorithm's tiles; of one that does not tell, the most that it is hoped to have. */
  size_t tile_rows() const { return tile_rows_; }

  /** Queues the product. 1 row or more; `workspace` has workspace_bytes. */
  void run(const uint16_t* weights, const uint16_t* rows, uint16_t* sums, size_t row_count, void* workspace, cudaStream_t stream) const;

 private:
  cublasStatus_t try_run(const cublasLtMatmulAlgo_t& algorithm, const uint16_t* weights, const uint16_t* rows, uint16_t* sums,
                         size_t row_count, void* workspace, cudaStream_t stream) const;

  struct Trial;

  const Blas& blas_;
  ProductSize size_;
  cublasLtMatmulDescOpaque_t description_;
  cublasLtMatmulAlgo_t algorithm_;
  size_t tile_rows_ = tile_rows_max;
};

}  // namespace switchyard::cuda
