#pragma once

#include <string>

namespace switchyard {

/**
 * A part of the addon as a shared library of its own, so that everything else loads on machines without the libraries that
 * it needs. It must come from the same build. Once loaded it stays, because its threads may run until the process ends.
 */
class ModuleFile {
 public:
  /** Loads the library at `path`, if there is one. `entry` names its one exported function. */
  ModuleFile(const std::string& path, const char* entry);

  bool present() const { return present_; }
  /** What the function gives; null if the file is absent or cannot be loaded. */
  template <typename Module>
  const Module* module() const {
    return static_cast<const Module*>(module_);
  }
  /** Why it cannot be loaded. */
  const std::string& problem() const { return problem_; }

 private:
  bool present_;
  const void* module_ = nullptr;
  std::string problem_;
};

}  // namespace switchyard
