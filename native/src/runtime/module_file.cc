#include "runtime/module_file.h"

#include <dlfcn.h>

#include <filesystem>

namespace switchyard {

ModuleFile::ModuleFile(const std::string& path, const char* entry) : present_(std::filesystem::exists(path)) {
  if (!present_) return;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    problem_ = dlerror();
    return;
  }
  using Entry = const void* (*)();
  const auto function = reinterpret_cast<Entry>(dlsym(library, entry));
  if (function == nullptr) problem_ = path + " has no function " + entry;
  else module_ = function();
}

}  // namespace switchyard
