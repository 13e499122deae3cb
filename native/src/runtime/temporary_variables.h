#pragma once

#include <span>
#include <vector>

namespace switchyard {

struct Variable {
  const char* name;
  const char* value;
};

/**
 * Variables of the environment for a library that takes its options from there alone. Those that the environment has keep
 * their values; the others are taken back at the end, so that children of the process do not inherit them.
 */
class TemporaryVariables {
 public:
  explicit TemporaryVariables(std::span<const Variable> variables);
  ~TemporaryVariables();
  TemporaryVariables(const TemporaryVariables&) = delete;
  TemporaryVariables& operator=(const TemporaryVariables&) = delete;

 private:
  std::vector<const char*> set_;
};

}  // namespace switchyard
