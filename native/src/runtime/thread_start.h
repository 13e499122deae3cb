#pragma once

#include <pthread.h>

#include "runtime/arithmetic.h"

namespace switchyard {

/**
 * What a thread does first: it gets a name, at most 15 characters, for those who look at the process from outside, and the arithmetic of IEEE 754.
 * It would have that of the thread that starts it, which another library may have told to take subnormal floats for zero.
 */
inline void start_thread(const char* name) {
  pthread_setname_np(pthread_self(), name);
  _mm_setcsr(usual_arithmetic);
}

}  // namespace switchyard
