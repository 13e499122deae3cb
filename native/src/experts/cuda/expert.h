#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

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

/**
 * Memory of experts. What an expert leaves is kept for the next one of its size: giving memory back to the device waits for
 * everything that runs there, which whoever lets go of an expert must not. Thread-safe.
 */
class ExpertMemory {
 public:
  /** May give back to the device what is kept, if memory does not suffice. Throws RESOURCE_EXHAUSTED. */
  DeviceMemory take(size_t bytes);
  void keep(DeviceMemory memory);
  /** Gives back what is kept, now and from now on. Calls of CUDA: never while batches run. */
  void close();

 private:
  std::mutex mutex_;
  bool closed_ = false;
  std::vector<DeviceMemory> kept_;
};

class CudaExpert final : public Expert {
 public:
  /** Takes the memory; the weights come by a WeightLoader. */
  CudaExpert(const Shape& shape, std::shared_ptr<ExpertMemory> memory);
  ~CudaExpert() override { memory_->keep(std::move(weights_)); }

  size_t bytes() const override { return weights_.bytes(); }
  size_t hidden() const override { return shape_.hidden; }
  size_t ffn() const override { return shape_.ffn; }

  const Shape& shape() const { return shape_; }
  /** As Shape lays them out. */
  uint16_t* first() const { return weights_.as<uint16_t>(); }
  uint16_t* second() const { return first() + shape_.first_elements(); }

  /** Set before the expert is handed out. */
  std::shared_ptr<const Products> products;

 private:
  Shape shape_;
  std::shared_ptr<ExpertMemory> memory_;
  DeviceMemory weights_;
};

/** Brings weights to the device through two buffers, one of which is filled while the other is copied. One thread at a time. */
class WeightLoader {
 public:
  ~WeightLoader() { memory_->close(); }

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

  const std::shared_ptr<ExpertMemory> memory_ = std::make_shared<ExpertMemory>();
  Stream stream_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace switchyard::cuda
