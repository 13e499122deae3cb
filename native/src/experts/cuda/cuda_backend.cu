#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <future>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "experts/cuda/cuda_backend.h"
#include "experts/cuda/host_memory.h"
#include "experts/cuda/nvml.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

using Clock = std::chrono::steady_clock;

/** How often a batch under way is looked after: CUDA tells of no end if the device fails. */
constexpr auto probe_interval = std::chrono::milliseconds(100);
constexpr auto sample_interval = std::chrono::seconds(1);
/** Calls under way that fill the ring with full batches, and some to choose from, if they are as large as they can be. */
constexpr int calls_wanted = 16;
/** The same, of calls of any size: a batch for each slot, and the next. */
constexpr size_t rows_wanted = (slot_count + 1) * batch_rows_max;

std::string pci_bus_id(int device) {
  char id[32];
  check(cudaDeviceGetPCIBusId(id, sizeof id, device), "to tell its bus id");
  return id;
}

/** Room that a new shape needs, to be made between batches. */
struct Reservation {
  Shape shape;
  std::promise<void> made;
};

class CudaBackend final : public ExpertBackend {
 public:
  CudaBackend(int device, BatchObserver observer);
  ~CudaBackend() override;

  BackendDescription description() const override { return description_; }
  std::unique_ptr<Expert> load(const ExpertSource& source) override;
  void submit(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) override;
  std::optional<DeviceFigures> figures() const override;
  std::shared_ptr<MemoryListener> memory_listener() override { return host_memory_; }

 private:
  void prepare(CudaExpert& expert);
  void reserve(const Shape& shape);

  // Of the backend's own thread.
  void work();
  bool wait_for_work();
  void finish(std::vector<Slot*> ended);
  void make_room(Reservation& reservation);
  void launch_waiting();
  void launch(Slot& slot, std::vector<Piece> pieces);
  void sample();
  void fail(std::exception_ptr error);

  const int device_;
  const BatchObserver observer_;
  BackendDescription description_;
  const std::shared_ptr<HostMemory> host_memory_;
  const std::unique_ptr<Nvml> nvml_;

  /** Of loads, one at a time. */
  std::mutex load_mutex_;
  Blas blas_;
  WeightLoader loader_;
  std::vector<std::pair<Shape, std::shared_ptr<const Products>>> products_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  CallQueue waiting_{batch_rows_max};
  std::vector<Slot*> ended_;
  std::optional<Reservation> reservation_;
  /** Set once: the device is of no use any more. */
  std::exception_ptr failure_;
  bool closing_ = false;
  DeviceFigures figures_;

  /** Used by the thread alone. */
  Ring ring_;
  Clock::time_point sampled_{};
  std::thread thread_;
};

CudaBackend::CudaBackend(int device, BatchObserver observer)
    : device_(device),
      observer_(std::move(observer)),
      host_memory_(std::make_shared<HostMemory>(device)),
      nvml_(Nvml::open(pci_bus_id(device))),
      ring_(device, [this](Slot& slot) {
        const std::lock_guard lock(mutex_);
        ended_.push_back(&slot);
        wake_.notify_one();
      }) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "to describe itself");
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "to tell its free memory");
  description_ = {.kind = "cuda",
                  .detail = properties.name,
                  .threads = 1,
                  .calls = calls_wanted,
                  .rows = rows_wanted,
                  .memory_bytes = free_bytes - std::min(free_bytes, batch_bytes_kept)};
  sample();
  thread_ = std::thread([this] { work(); });
}

CudaBackend::~CudaBackend() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_one();
  thread_.join();
  // Everything that is freed after this belongs to the device, whatever thread this is.
  cudaSetDevice(device_);
  ring_.abandon();
  host_memory_->close();
}

std::unique_ptr<Expert> CudaBackend::load(const ExpertSource& source) {
  check_source(source);
  const std::lock_guard lock(load_mutex_);
  {
    const std::lock_guard state(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }
  use_device(device_);
  auto expert = loader_.load(source);
  prepare(*expert);
  // Batches run in other streams.
  loader_.stream().wait();
  return expert;
}

/** Chooses algorithms and makes room with the first expert of a shape. */
void CudaBackend::prepare(CudaExpert& expert) {
  for (const auto& [shape, products] : products_) {
    if (shape == expert.shape()) {
      expert.products = products;
      return;
    }
  }
  const Stream& stream = loader_.stream();
  expert.products = std::make_shared<const Products>(blas_, expert.shape(), expert.first(), expert.second(), stream);
  reserve(expert.shape());
  products_.emplace_back(expert.shape(), expert.products);
}

void CudaBackend::reserve(const Shape& shape) {
  std::future<void> made;
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    reservation_.emplace(Reservation{shape, {}});
    made = reservation_->made.get_future();
  }
  wake_.notify_one();
  made.get();
}

void CudaBackend::submit(const Expert& expert, std::vector<ExpertInput> inputs, ForwardDone done) {
  std::exception_ptr refused;
  try {
    check_inputs(inputs);
    if (dynamic_cast<const CudaExpert*>(&expert) == nullptr) throw_invalid("expert", std::string("of another backend"), "one that this backend loaded");
    const std::lock_guard lock(mutex_);
    refused = failure_;
    if (!refused && waiting_.push(expert, std::move(inputs), done)) {
      wake_.notify_one();
      return;
    }
  } catch (...) {
    refused = std::current_exception();
  }
  done({}, refused);
}

std::optional<DeviceFigures> CudaBackend::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

void CudaBackend::work() {
  try {
    use_device(device_);
    while (wait_for_work()) {
      std::vector<Slot*> ended;
      std::optional<Reservation> reservation;
      {
        const std::lock_guard lock(mutex_);
        ended.swap(ended_);
        if (reservation_ && ring_.idle()) reservation.swap(reservation_);
      }
      finish(std::move(ended));
      if (reservation) make_room(*reservation);
      if (!ring_.idle()) ring_.probe();
      launch_waiting();
      if (Clock::now() - sampled_ >= sample_interval) sample();
    }
  } catch (...) {
    fail(std::current_exception());
  }
}

/** False when nothing is left to do for good. */
bool CudaBackend::wait_for_work() {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, probe_interval, [this] {
    if (!ended_.empty()) return true;
    if (reservation_) return ring_.idle();
    if (!waiting_.empty()) return ring_.free_slot() != nullptr;
    return closing_ && ring_.idle();
  });
  return !(closing_ && waiting_.empty() && ended_.empty() && !reservation_ && ring_.idle());
}

void CudaBackend::finish(std::vector<Slot*> ended) {
  for (Slot* slot : ended) {
    const BatchTimes times = ring_.finish(*slot);
    const std::vector<Piece> pieces = std::exchange(slot->pieces, {});
    {
      const std::lock_guard lock(mutex_);
      figures_.copy_in_seconds += times.copy_in.seconds;
      figures_.compute_seconds += times.compute.seconds;
      figures_.copy_out_seconds += times.copy_out.seconds;
    }
    if (observer_) observer_(times);
    CallQueue::end(pieces, {times.started, times.compute.seconds}, nullptr);
  }
}

void CudaBackend::make_room(Reservation& reservation) {
  try {
    ring_.reserve(reservation.shape);
    reservation.made.set_value();
  } catch (...) {
    reservation.made.set_exception(std::current_exception());
  }
}

void CudaBackend::launch_waiting() {
  while (Slot* const slot = ring_.free_slot()) {
    std::vector<Piece> pieces;
    {
      const std::lock_guard lock(mutex_);
      // Room is made between batches: until then none begins.
      if (!reservation_) pieces = waiting_.take();
    }
    if (pieces.empty()) return;
    launch(*slot, std::move(pieces));
  }
}

void CudaBackend::launch(Slot& slot, std::vector<Piece> pieces) {
  slot.pieces = std::move(pieces);
  // Until the plan is made nothing has begun, and what goes wrong concerns these calls alone.
  try {
    const size_t hidden = slot.pieces.front().call->expert->hidden();
    slot.plan = make_plan(slot.pieces, hidden, [this](const void* memory, size_t bytes) { return host_memory_->holds(memory, bytes); });
  } catch (...) {
    CallQueue::end(std::exchange(slot.pieces, {}), {}, std::current_exception());
    return;
  }
  ring_.launch(slot);
}

void CudaBackend::sample() {
  sampled_ = Clock::now();
  NvmlSample found{};
  const auto told = nvml_ ? nvml_->sample() : std::nullopt;
  if (told) {
    found = *told;
  } else {
    size_t free_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &found.memory_total_bytes), "to tell its free memory");
    found.memory_used_bytes = found.memory_total_bytes - free_bytes;
  }
  const std::lock_guard lock(mutex_);
  figures_.memory_used_bytes = found.memory_used_bytes;
  figures_.memory_total_bytes = found.memory_total_bytes;
  figures_.utilization = found.utilization;
}

/** The last that the thread does. Later calls are refused with the same error. */
void CudaBackend::fail(std::exception_ptr error) {
  std::optional<Reservation> reservation;
  CallQueue waiting{batch_rows_max};
  {
    const std::lock_guard lock(mutex_);
    try {
      std::rethrow_exception(error);
    } catch (const std::exception& reason) {
      const std::string message = "cuda:" + std::to_string(device_) + " (" + description_.detail + ") is lost: " + reason.what();
      failure_ = std::make_exception_ptr(Error(Code::device_lost, message));
    }
    reservation.swap(reservation_);
    std::swap(waiting, waiting_);
  }
  const std::vector<Piece> pieces = ring_.abandon();
  for (const Piece& piece : pieces) CallQueue::end({&piece, 1}, {}, failure_);
  waiting.fail(failure_);
  if (reservation) reservation->made.set_exception(failure_);
}

}  // namespace

Description describe_devices() {
  prepare_runtime();
  Description description;
  const auto version = [](int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); };
  description.runtime = version(CUDART_VERSION);
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    cudaGetLastError();
    description.problem = "no NVIDIA driver was found";
    return description;
  }
  description.driver = version(driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    description.problem = cudaGetErrorString(status);
    return description;
  }
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device), "to describe itself");
    description.devices.push_back({.name = properties.name,
                                   .capability = std::to_string(properties.major) + "." + std::to_string(properties.minor),
                                   .memory_bytes = properties.totalGlobalMem});
  }
  return description;
}

std::unique_ptr<ExpertBackend> create_backend(int device, BatchObserver observer) {
  const Description found = describe_devices();
  const std::string field = "device";
  const std::string value = "cuda:" + std::to_string(device);
  if (!found.problem.empty()) throw_invalid(field, value, "cpu, because " + found.problem);
  const int count = static_cast<int>(found.devices.size());
  if (device < 0 || device >= count) throw_invalid(field, value, "cuda:0 to cuda:" + std::to_string(count - 1) + ", or cpu");
  use_device(device);
  return std::make_unique<CudaBackend>(device, std::move(observer));
}

}  // namespace switchyard::cuda
