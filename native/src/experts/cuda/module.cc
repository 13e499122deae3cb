#include "experts/cuda/module.h"

#include <dlfcn.h>

#include <filesystem>

namespace switchyard::cuda {

ModuleFile::ModuleFile(const std::string& path) : present_(std::filesystem::exists(path)) {
  if (!present_) return;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    problem_ = dlerror();
    return;
  }
  using Entry = const Module* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(library, "switchyard_cuda"));
  if (entry == nullptr) problem_ = path + " has no function switchyard_cuda";
  else module_ = entry();
}

}  // namespace switchyard::cuda
