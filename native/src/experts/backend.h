#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "experts/activation.h"

namespace switchyard {

/** A row-major matrix of BF16 bits, read piece by piece, so that experts need not know files. */
struct MatrixSource {
  size_t rows = 0;
  size_t columns = 0;
  /** Writes `row_count * columns` elements to `out`. Called by one thread at a time; what it throws ends the load. */
  std::function<void(size_t first_row, size_t row_count, uint16_t* out)> read;
};

/** The matrices of one expert. */
struct ExpertSource {
  Activation activation = Activation::swiglu;
  /** [ffn, hidden]; given if and only if the activation is swiglu. */
  std::optional<MatrixSource> gate;
  /** [ffn, hidden] */
  MatrixSource up;
  /** [hidden, ffn] */
  MatrixSource down;
};

/** Throws INVALID_ARGUMENT unless the matrices fit together. Every backend's `load` begins with it. */
void check_source(const ExpertSource& source);

/** The weights of one expert in the order of the backend that loaded it. The destructor frees them. */
class Expert {
 public:
  virtual ~Expert() = default;
  Expert(const Expert&) = delete;
  Expert& operator=(const Expert&) = delete;

  /** Memory that the weights take. */
  virtual size_t bytes() const = 0;
  virtual size_t hidden() const = 0;
  virtual size_t ffn() const = 0;

 protected:
  Expert() = default;
};

/**
 * Rows of one token batch for one expert: row `indices[i]` of `rows` gives row `output_row + i` of `output`.
 * All memory stays the caller's and must not change until `forward` returns. Outputs of the inputs of
 * one call must not overlap each other or any rows.
 */
struct ExpertInput {
  /** [row_count, hidden] BF16. */
  const uint16_t* rows = nullptr;
  size_t row_count = 0;
  std::span<const uint32_t> indices;
  /** [output_row_count, hidden] BF16. */
  uint16_t* output = nullptr;
  size_t output_row_count = 0;
  size_t output_row = 0;
  /** One float per index, or null: every element of the row is multiplied and rounded to BF16 first. */
  const float* input_weights = nullptr;
};

/** Throws INVALID_ARGUMENT if an index or an output row lies outside. Every backend's `forward` begins with it. */
void check_inputs(std::span<const ExpertInput> inputs);

struct BackendDescription {
  /** "cpu" or "cuda". */
  std::string kind;
  /** What computes: an instruction set or a device's name. */
  std::string detail;
  /** Host threads that compute. */
  int threads = 0;
};

/**
 * Computes expert FFNs on one device.
 *
 * Sums are float32. What the activation gives is rounded to BF16 once, and so is the output. The bits of a
 * row depend on the row, the expert and the device's kind alone: not on the rows beside it, on their
 * number or on threads. NaN and infinities stay in their row.
 */
class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  virtual BackendDescription description() const = 0;

  /**
   * Brings an expert's weights to the device. May run beside `forward`.
   * Throws INVALID_ARGUMENT if shapes do not fit, RESOURCE_EXHAUSTED if memory does not suffice.
   */
  virtual std::unique_ptr<Expert> load(const ExpertSource& source) = 0;

  /**
   * Computes all inputs with an expert that this backend loaded, over all threads of the device, and
   * returns the seconds it spent. Returns when every output row is written. Callers on several threads
   * are served one after the other. Inputs may be empty. Throws INVALID_ARGUMENT before anything is written.
   */
  virtual double forward(const Expert& expert, std::span<const ExpertInput> inputs) = 0;
};

/**
 * The CPU backend with the best instruction set of this machine, or the one that the environment's
 * SWITCHYARD_CPU_ISA names ("amx-bf16", "avx512-bf16", "avx2"). The calling thread of `forward` is one of
 * the `threads`; the others belong to the backend. Throws INVALID_ARGUMENT for a thread count outside
 * 1 to 1024 or an instruction set that is unknown or that this machine lacks.
 */
std::unique_ptr<ExpertBackend> create_cpu_backend(int threads);

}  // namespace switchyard
