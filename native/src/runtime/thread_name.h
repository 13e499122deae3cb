#pragma once

#include <pthread.h>

namespace switchyard {

/** Names the calling thread, at most 15 characters, for those who look at the process from outside. */
inline void name_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace switchyard
