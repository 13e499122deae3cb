#include "experts/cuda/nvml.h"

#include <dlfcn.h>

#include <utility>

namespace switchyard::cuda {

namespace {

// The library's own binary interface: it has not changed since these functions exist, and its header is not needed.
struct Memory {
  unsigned long long total, free, used;
};
struct Utilization {
  unsigned gpu, memory;
};
constexpr int success = 0;

}  // namespace

struct Nvml::Functions {
  int (*init)();
  int (*shutdown)();
  int (*by_pci_bus_id)(const char* id, void** device);
  int (*memory)(void* device, Memory* out);
  int (*utilization)(void* device, Utilization* out);

  /** False if the library lacks one of them. */
  bool find(void* library) {
    const auto one = [library](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      return function != nullptr;
    };
    return one("nvmlInit_v2", init) && one("nvmlShutdown", shutdown) && one("nvmlDeviceGetHandleByPciBusId_v2", by_pci_bus_id) &&
           one("nvmlDeviceGetMemoryInfo", memory) && one("nvmlDeviceGetUtilizationRates", utilization);
  }
};

std::unique_ptr<Nvml> Nvml::open(const std::string& pci_bus_id) {
  void* const library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  auto functions = std::make_unique<Functions>();
  if (!functions->find(library) || functions->init() != success) {
    dlclose(library);
    return nullptr;
  }
  void* device = nullptr;
  if (functions->by_pci_bus_id(pci_bus_id.c_str(), &device) != success) {
    functions->shutdown();
    dlclose(library);
    return nullptr;
  }
  return std::unique_ptr<Nvml>(new Nvml(library, std::move(functions), device));
}

Nvml::Nvml(void* library, std::unique_ptr<Functions> functions, void* device)
    : library_(library), functions_(std::move(functions)), device_(device) {}

Nvml::~Nvml() {
  functions_->shutdown();
  dlclose(library_);
}

std::optional<NvmlSample> Nvml::sample() const {
  Memory memory;
  if (functions_->memory(device_, &memory) != success) return std::nullopt;
  NvmlSample sample{.memory_used_bytes = memory.used, .memory_total_bytes = memory.total, .utilization = std::nullopt};
  Utilization utilization;
  if (functions_->utilization(device_, &utilization) == success) sample.utilization = utilization.gpu / 100.0;
  return sample;
}

}  // namespace switchyard::cuda
