#include "kernels/scores.h"

#include <vector>

namespace switchyard::scores {
namespace {

std::vector<Kernel> detect() {
  std::vector<Kernel> found;
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f")) {
    found.push_back(avx512_bf16_kernel());
  }
  found.push_back(avx2_kernel());
  return found;
}

}  // namespace

std::span<const Kernel> kernels() {
  static const std::vector<Kernel> found = detect();
  return found;
}

}  // namespace switchyard::scores
