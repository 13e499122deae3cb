#pragma once

#include <array>
#include <memory>

#include "experts/backend.h"
#include "experts/cuda/device.h"
#include "experts/cuda/layout.h"
#include "experts/cuda/products.h"

namespace switchyard::cuda {

/** The two products of a shape, with the algorithms chosen for it. */
struct Products {
  /** The weights are those of any expert of the shape. */
  Products(const Blas& blas, const Shape& shape, const uint16_t* first_weights, const uint16_t* second_weights, cudaStream_t stream);

  Product first;
  Product second;
};

class CudaExpert final : public Expert {
 public:
  /** Takes the memory; the weights come by a WeightLoader. */
  explicit CudaExpert(const Shape& shape);

  size_t bytes() const override { return first_.bytes() + second_.bytes(); }
  size_t hidden() const override { return shape_.hidden; }
  size_t ffn() const override { return shape_.ffn; }

  const Shape& shape() const { return shape_; }
  /** As Shape lays them out. */
  uint16_t* first() const { return first_.as<uint16_t>(); }
  uint16_t* second() const { return second_.as<uint16_t>(); }

  /** Set before the expert is handed out. */
  std::shared_ptr<const Products> products;

 private:
  Shape shape_;
  DeviceMemory first_;
  DeviceMemory second_;
};

/** Brings weights to the device through two buffers, one of which is filled while the other is copied. One thread at a time. */
class WeightLoader {
 public:
  /** The weights are there when the stream has ended. Throws what the source or the device throws. */
  std::unique_ptr<CudaExpert> load(const ExpertSource& source);
  const Stream& stream() const { return stream_; }

 private:
  static constexpr size_t buffer_bytes = size_t{16} << 20;
  struct Buffer {
    PinnedMemory memory{buffer_bytes, "a buffer for weights"};
    /** The buffer can be filled again. */
    Event copied;
  };

  void upload(const MatrixSource& matrix, uint16_t* target, size_t stride);

  Stream stream_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace switchyard::cuda
