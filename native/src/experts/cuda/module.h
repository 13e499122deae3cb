#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "experts/backend.h"

namespace switchyard::cuda {

struct DeviceDescription {
  std::string name;
  /** Compute capability, for example "9.0". */
  std::string capability;
  size_t memory_bytes = 0;
};

/** What this machine has of CUDA. */
struct Description {
  /** Version of CUDA that the module was built with. */
  std::string runtime;
  /** Newest version of CUDA that the driver knows; empty if there is no driver. */
  std::string driver;
  std::vector<DeviceDescription> devices;
  /** Why no device can be used; empty if one can. */
  std::string problem;
};

/** What switchyard_cuda.so offers. */
struct Module {
  Description (*describe)();
  /**
   * Opens device number `device`. Throws INVALID_ARGUMENT if there is none of that number, RESOURCE_EXHAUSTED if it
   * has no memory, DEVICE_LOST if it does not work.
   */
  std::unique_ptr<ExpertBackend> (*create)(int device);
};

}  // namespace switchyard::cuda
