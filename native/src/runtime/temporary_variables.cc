#include "runtime/temporary_variables.h"

#include <cstdlib>

namespace switchyard {

TemporaryVariables::TemporaryVariables(std::span<const Variable> variables) {
  for (const auto& [name, value] : variables) {
    if (std::getenv(name)) continue;
    setenv(name, value, 1);
    set_.push_back(name);
  }
}

TemporaryVariables::~TemporaryVariables() {
  for (const char* name : set_) unsetenv(name);
}

}  // namespace switchyard
