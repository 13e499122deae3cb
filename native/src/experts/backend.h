#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "experts/activation.h"
#include "experts/packed_form.h"
#include "memory/listener.h"

namespace switchyard {

/** A row-major matrix of BF16 bits, read piece by piece, so that experts need not know files. */
struct MatrixSource {
  size_t rows = 0;
  size_t columns = 0;
  /** Writes `row_count * columns` elements to `out`. Called by one thread at a time; what it throws ends the load. */
  std::function<void(size_t first_row, size_t row_count, uint16_t* out)> read;
  /** The same weights as they are stored, for backends that can keep them so; absent: they are BF16, or become that. */
  std::optional<PackedSource> packed = std::nullopt;
};

/** Linear maps around the matrices of experts, the same for all of a layer: rows become narrower ones, and results rows again. */
struct LatentSource {
  /** Experts of one backend whose sources have the same key share the maps in memory. */
  std::string key;
  /** [latent, hidden] */
  MatrixSource input;
  /** [hidden, latent] */
  MatrixSource output;
  /** Reads what is added to what `input` gives, [latent]; empty: nothing is. */
  std::function<std::vector<float>()> input_bias = {};
};

/** The matrices of one expert. Within linear maps it has `latent` in place of hidden. */
struct ExpertSource {
  Activation activation = Activation::swiglu;
  GluForm glu = {};
  /** [ffn, hidden]; given if and only if the activation has a gate. */
  std::optional<MatrixSource> gate;
  /** [ffn, hidden] */
  MatrixSource up;
  /** [hidden, ffn] */
  MatrixSource down;
  /** Read what is added to the products, [ffn], [ffn] and [hidden]; empty: nothing is. */
  std::function<std::vector<float>()> gate_bias = {}, up_bias = {}, down_bias = {};
  /** Absent: rows are taken as they are. */
  std::optional<LatentSource> latent = {};
};

/** Throws INVALID_ARGUMENT unless the matrices fit together. Every backend's `load` begins with it. */
void check_source(const ExpertSource& source);

/** The weights of one expert in the order of the backend that loaded it. The destructor frees them. */
class Expert {
 public:
  virtual ~Expert() = default;
  Expert(const Expert&) = delete;
  Expert& operator=(const Expert&) = delete;

  /** Memory that the weights take, less what experts share. */
  virtual size_t bytes() const = 0;
  virtual size_t hidden() const = 0;
  virtual size_t ffn() const = 0;

 protected:
  Expert() = default;
};

/**
 * Rows of one token batch for one expert: row `indices[i]` of `rows` gives row `output_row + i` of `output`.
 * All memory stays the caller's and must not change until the call is done. Outputs of the inputs of
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

/** Throws INVALID_ARGUMENT if an index or an output row lies outside. Every backend checks a call with it. */
void check_inputs(std::span<const ExpertInput> inputs);

/** Rows for one expert. */
struct ExpertCall {
  const Expert& expert;
  std::span<const ExpertInput> inputs;

  size_t rows() const;
};

/** When the device began a call and what it spent on it. */
struct ComputeTime {
  std::chrono::steady_clock::time_point started{};
  double seconds = 0;
};

/**
 * Ends a call: its time, or why it failed. Called once, on a thread of the backend or,
 * for a call that is refused, of its caller. It must neither block nor throw.
 */
using ForwardDone = std::function<void(const ComputeTime& time, std::exception_ptr error)>;

struct BackendDescription {
  /** "cpu" or "cuda". */
  std::string kind;
  /** What computes: an instruction set or a device's name. */
  std::string detail;
  /** Host threads that compute, or that drive the device. */
  int threads = 0;
  /** Calls that keep the device busy when as many are under way. */
  int calls = 0;
  /** Rows that do, if calls are small: more calls are wanted until there are as many; 0: none are. */
  size_t rows = 0;
  /** What experts may take of a device's own memory; 0: it is the host's. */
  size_t memory_bytes = 0;
};

/** What a device with memory of its own has done since it was opened, and how it is. */
struct DeviceFigures {
  double copy_in_seconds = 0;
  double compute_seconds = 0;
  double copy_out_seconds = 0;
  size_t memory_used_bytes = 0;
  size_t memory_total_bytes = 0;
  /** Share of the recent past in which a kernel ran, 0 to 1; absent where the driver does not tell. */
  std::optional<double> utilization;
};

/**
 * Computes expert FFNs on one device.
 *
 * Sums are float32. What the activation gives is rounded to BF16 once, and so are the output and latent rows; CUDA rounds the sums
 * before the activation to BF16 as well. The bits of a row depend on the row, the expert and the device's type alone:
 * not on the rows beside it, on their number or on threads. NaN and infinities stay in their row.
 */
class ExpertBackend {
 public:
  virtual ~ExpertBackend() = default;

  virtual BackendDescription description() const = 0;

  /**
   * Brings an expert's weights to the device. May run beside calls.
   * Throws INVALID_ARGUMENT if shapes do not fit, RESOURCE_EXHAUSTED if memory does not suffice, DEVICE_LOST.
   */
  virtual std::unique_ptr<Expert> load(const ExpertSource& source) = 0;

  /**
   * Begins to compute all inputs with an expert that this backend loaded, and returns at once. Calls begin in the order
   * of submission. Expert and memory must live until `done`; then every output row is written, or none is of use.
   * Errors reach `done` alone: INVALID_ARGUMENT before anything is written, DEVICE_LOST when the device has failed for
   * good, and then for every later call. The destructor waits for calls under way.
   */
  virtual void submit(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) = 0;

  /**
   * The same, and waits: returns the seconds or throws. Not for threads of the backend. Where the device is the host, the caller's thread
   * computes, as soon as no other call does.
   */
  virtual double forward(const Expert& expert, std::span<const ExpertInput> inputs);

  /** Whether forward() of all these, one after the other, takes less time than to hand them to another thread: they are small, and the device is free. */
  virtual bool is_brief(std::span<const ExpertCall> /*calls*/) const { return false; }

  /** Absent if the device is the host. Does not wait for the device. */
  virtual std::optional<DeviceFigures> figures() const { return std::nullopt; }

  /** Shall hear of the memory that rows lie in, so that the device can reach it directly; null if that brings nothing. */
  virtual std::shared_ptr<MemoryListener> memory_listener() { return nullptr; }
};

/**
 * The CPU backend with the best instruction set of this machine, or the one that the environment's
 * SWITCHYARD_CPU_ISA names ("amx-bf16", "avx512-bf16", "avx2"). Each call runs on all `threads` of the backend.
 * Throws INVALID_ARGUMENT for a thread count outside 1 to 1024 or an instruction set that is unknown or that this
 * machine lacks.
 */
std::unique_ptr<ExpertBackend> create_cpu_backend(int threads);

}  // namespace switchyard
