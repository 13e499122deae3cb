#pragma once

#include <string>

#include "memory/slab.h"
#include "runtime/pool.h"

namespace switchyard::addon {

/** What all environments of the process share. Never destroyed: its threads may run until the process ends. */
SlabArena& arena();

/** The pool for row operations; its threads start with the first use. */
ThreadPool& pool();

/** `slab_setting`: what draws the bound of slabs, for errors. Throws INVALID_ARGUMENT if the pool runs already with another number of threads. */
void configure(size_t slab_bytes_max, std::string slab_setting, int threads);

}  // namespace switchyard::addon
