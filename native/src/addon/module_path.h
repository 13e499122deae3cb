#pragma once

#include <string>

namespace switchyard::addon {

/** Where a module of the addon lies: beside it. */
std::string module_path(const std::string& name);

}  // namespace switchyard::addon
