#include <cstdlib>
#include <string>

#include "experts/cpu/kernels.h"
#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

const Kernels* const built_in[] = {&amx_bf16_kernels, &avx512_bf16_kernels, &avx2_kernels};

std::string names(bool only_supported) {
  std::string list;
  for (const Kernels* kernels : built_in) {
    if (only_supported && !kernels->supported()) continue;
    list += (list.empty() ? "" : ", ") + std::string(kernels->name);
  }
  return list;
}

}  // namespace

std::span<const Kernels* const> all_kernels() { return built_in; }

const Kernels& choose_kernels() {
  const char* forced = std::getenv("SWITCHYARD_CPU_ISA");
  for (const Kernels* kernels : built_in) {
    if (forced != nullptr && kernels->name != forced) continue;
    if (kernels->supported()) return *kernels;
  }
  if (forced == nullptr) throw Error(Code::invalid_argument, "this CPU has none of the instruction sets: " + names(false));
  throw Error(Code::config_invalid, "SWITCHYARD_CPU_ISA is \"" + std::string(forced) + "\"; allowed: " + names(true) + ", which this CPU has");
}

}  // namespace switchyard::cpu
