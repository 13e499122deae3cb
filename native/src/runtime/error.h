#pragma once

#include <stdexcept>
#include <string>
#include <type_traits>

namespace switchyard {

/** The codes of services/common/errors.ts that native code raises. */
enum class Code {
  invalid_argument,
  config_invalid,
  resource_exhausted,
  slab_released,
  model_invalid,
  data_loss,
  link_lost,
  device_lost,
  cancelled,
  internal,
};

/** The code as JavaScript spells it. */
const char* to_string(Code code);

/** An operating error; its message says what was wrong, the value seen and the value allowed. */
struct Error : std::runtime_error {
  Error(Code code, const std::string& message) : std::runtime_error(message), code(code) {}

  Code code;
};

/** INVALID_ARGUMENT in the one form all messages share: "<field> is <value>; allowed: <allowed>". */
[[noreturn]] void throw_invalid(const std::string& field, const std::string& value, const std::string& allowed);

template <typename Number>
  requires std::is_arithmetic_v<Number>
[[noreturn]] void throw_invalid(const std::string& field, Number value, const std::string& allowed) {
  throw_invalid(field, std::to_string(value), allowed);
}

}  // namespace switchyard
