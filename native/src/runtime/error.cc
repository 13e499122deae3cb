#include "runtime/error.h"

namespace switchyard {

const char* to_string(Code code) {
  switch (code) {
    case Code::invalid_argument:
      return "INVALID_ARGUMENT";
    case Code::config_invalid:
      return "CONFIG_INVALID";
    case Code::resource_exhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::slab_released:
      return "SLAB_RELEASED";
    case Code::model_invalid:
      return "MODEL_INVALID";
    case Code::data_loss:
      return "DATA_LOSS";
    case Code::link_lost:
      return "LINK_LOST";
    case Code::device_lost:
      return "DEVICE_LOST";
    case Code::cancelled:
      return "CANCELLED";
    case Code::internal:
      return "INTERNAL";
  }
  return "INTERNAL";
}

void throw_invalid(const std::string& field, const std::string& value, const std::string& allowed) {
  throw Error(Code::invalid_argument, field + " is " + value + "; allowed: " + allowed);
}

}  // namespace switchyard
