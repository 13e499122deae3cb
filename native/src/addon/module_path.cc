#include "addon/module_path.h"

#include <dlfcn.h>

namespace switchyard::addon {

std::string module_path(const std::string& name) {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&module_path), &info) == 0) return name;
  const std::string own = info.dli_fname;
  return own.substr(0, own.rfind('/') + 1) + name;
}

}  // namespace switchyard::addon
