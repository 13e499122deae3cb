#pragma once

#include <cstddef>
#include <mutex>

#include "hazards.h"

namespace fake_cuda {

/** A thread of the host, and what it knows to have happened. */
struct Host {
  size_t thread = 0;
  Clock clock;
};

// A program links either hosts/apart.cc, which gives each thread a clock, or hosts/together.cc, where all of them have one.

/** The calling thread. */
Host& this_host();
/** The calling thread runs a host function: it knows what was before it in its stream, and nothing else. */
void begin_host_function(const Clock& before);
/** All begin anew. */
void forget_hosts();
/** To lock this mutex orders nothing: it is the fake's own. */
void leave_out(std::mutex& mutex);

}  // namespace fake_cuda
