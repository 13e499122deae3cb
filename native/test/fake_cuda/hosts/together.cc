// One clock for all threads of the host: for a module in someone else's process, which does not see how the threads there synchronise, and
// for ThreadSanitizer, which takes the place of the functions that apart.cc listens to and tells by itself which threads do not synchronise.
#include "hosts.h"

namespace fake_cuda {
namespace {

/** Used with the device's lock. */
Host all;

}  // namespace

Host& this_host() { return all; }
void begin_host_function(const Clock& before) { all.clock.join(before); }
void forget_hosts() { all = {}; }
void leave_out(std::mutex&) {}

}  // namespace fake_cuda
