// Of programs that take the fake for a device: it is there from the beginning, and what it found fails them at the end.
#include <cstdio>
#include <cstdlib>

#include "fake.h"

namespace fake_cuda {
namespace {

struct Process {
  Process() { reset({}); }
  ~Process() {
    const Report found = report();
    for (const std::string& hazard : found.hazards) std::fprintf(stderr, "fake_cuda: %s\n", hazard.c_str());
    if (!found.hazards.empty()) std::_Exit(1);
  }
} process;

}  // namespace
}  // namespace fake_cuda
