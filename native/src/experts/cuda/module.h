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

/** What the module offers. */
struct Module {
  Description (*describe)();
  /**
   * Opens device number `device`. Throws INVALID_ARGUMENT if there is none of that number, RESOURCE_EXHAUSTED if it
   * has no memory, DEVICE_LOST if it does not work.
   */
  std::unique_ptr<ExpertBackend> (*create)(int device);
};

/**
 * The CUDA backend as a shared library of its own, so that everything else loads on machines without CUDA's libraries.
 * It must come from the same build. Once loaded it stays, because CUDA's threads run until the process ends.
 */
class ModuleFile {
 public:
  explicit ModuleFile(const std::string& path);

  bool present() const { return present_; }
  /** Null if the file is absent or cannot be loaded. */
  const Module* module() const { return module_; }
  /** Why it cannot be loaded. */
  const std::string& problem() const { return problem_; }

 private:
  bool present_;
  const Module* module_ = nullptr;
  std::string problem_;
};

}  // namespace switchyard::cuda
