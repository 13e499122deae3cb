#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

namespace switchyard::cuda {

struct NvmlSample {
  size_t memory_used_bytes;
  size_t memory_total_bytes;
  /** Share of the recent past in which a kernel ran, 0 to 1; absent where it is not told. */
  std::optional<double> utilization;
};

/** NVIDIA's management library, which comes with the driver, for one device. */
class Nvml {
 public:
  /** Null if the library is not there or does not know the device. */
  static std::unique_ptr<Nvml> open(const std::string& pci_bus_id);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  std::optional<NvmlSample> sample() const;

 private:
  struct Functions;
  Nvml(void* library, std::unique_ptr<Functions> functions, void* device);

  void* library_;
  std::unique_ptr<Functions> functions_;
  void* device_;
};

}  // namespace switchyard::cuda
