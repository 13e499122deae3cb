#pragma once

#include <chrono>

namespace switchyard::addon {

/** A time as JavaScript gets it: microseconds on the clock of process.hrtime. */
inline double to_microseconds(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration<double, std::micro>(time.time_since_epoch()).count();
}

}  // namespace switchyard::addon
