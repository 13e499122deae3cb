#include <algorithm>
#include <string>

#include "experts/cuda/expert.h"
#include "experts/cuda/nvtx.h"
#include "runtime/error.h"

namespace switchyard::cuda {

Products::Products(const Blas& blas, const Shape& shape, const uint16_t* first_weights, const uint16_t* second_weights, cudaStream_t stream)
    : first(blas,
            {.outputs = shape.intermediate(), .depth = shape.hidden_padded(), .input_stride = shape.hidden_padded(), .output_stride = shape.intermediate()},
            first_weights, stream),
      second(blas,
             {.outputs = shape.hidden_padded(), .depth = shape.ffn_padded(), .input_stride = shape.intermediate(), .output_stride = shape.hidden_padded()},
             second_weights, stream) {}

DeviceMemory ExpertMemory::take(size_t bytes) {
  const std::string what = "an expert";
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(kept_, bytes, &DeviceMemory::bytes);
  if (found != kept_.end()) {
    DeviceMemory memory = std::move(*found);
    kept_.erase(found);
    return memory;
  }
  if (!kept_.empty()) {
    try {
      return DeviceMemory(bytes, what);
    } catch (const Error& error) {
      if (error.code != Code::resource_exhausted) throw;
    }
    kept_.clear();
  }
  return DeviceMemory(bytes, what);
}

void ExpertMemory::keep(DeviceMemory memory) {
  const std::lock_guard lock(mutex_);
  if (!closed_) kept_.push_back(std::move(memory));
}

void ExpertMemory::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  kept_.clear();
}

CudaExpert::CudaExpert(const Shape& shape, std::shared_ptr<ExpertMemory> memory)
    : shape_(shape), memory_(std::move(memory)), weights_(memory_->take(expert_bytes(shape))) {}

namespace {

/** Throws INVALID_ARGUMENT for forms that the device's kernels do not compute. */
void require_usual(const ExpertSource& source) {
  const bool usual = source.activation == Activation::gelu || (source.activation == Activation::swiglu && source.glu == GluForm{});
  if (!usual) throw_invalid("activation", std::string("of another form"), "plain swiglu and gelu on CUDA");
  if (source.latent) throw_invalid("latent", std::string("given"), "none on CUDA");
  if (source.gate_bias || source.up_bias || source.down_bias) throw_invalid("bias", std::string("given"), "none on CUDA");
}

}  // namespace

std::unique_ptr<CudaExpert> WeightLoader::load(const ExpertSource& source) {
  require_usual(source);
  const Range range("load expert");
  const Shape shape{.hidden = source.up.columns, .ffn = source.up.rows, .gated = source.activation == Activation::swiglu};
  auto expert = std::make_unique<CudaExpert>(shape, memory_);
  // Padding is zero for good.
  check(cudaMemsetAsync(expert->first(), 0, shape.first_elements() * sizeof(uint16_t), stream_), "to set memory");
  check(cudaMemsetAsync(expert->second(), 0, shape.second_elements() * sizeof(uint16_t), stream_), "to set memory");
  try {
    if (source.gate) upload(*source.gate, expert->first(), shape.hidden_padded());
    upload(source.up, expert->first() + shape.up_row() * shape.hidden_padded(), shape.hidden_padded());
    upload(source.down, expert->second(), shape.ffn_padded());
  } catch (...) {
    // The expert's memory and the buffers must not be written to any more.
    cudaStreamSynchronize(stream_);
    throw;
  }
  return expert;
}

void WeightLoader::upload(const MatrixSource& matrix, uint16_t* target, size_t stride) {
  const size_t row_bytes = matrix.columns * sizeof(uint16_t);
  const size_t rows_max = std::max<size_t>(1, buffer_bytes / row_bytes);
  for (size_t row = 0; row < matrix.rows; row += rows_max) {
    const size_t count = std::min(rows_max, matrix.rows - row);
    Buffer& buffer = buffers_[next_++ % buffers_.size()];
    buffer.copied.wait();
    buffer.memory.reserve(count * row_bytes, "a buffer for weights");
    matrix.read(row, count, buffer.memory.as<uint16_t>());
    check(cudaMemcpy2DAsync(target + row * stride, stride * sizeof(uint16_t), buffer.memory.as<uint16_t>(), row_bytes, row_bytes, count,
                            cudaMemcpyHostToDevice, stream_),
          "to copy weights in");
    buffer.copied.record(stream_);
  }
}

}  // namespace switchyard::cuda
