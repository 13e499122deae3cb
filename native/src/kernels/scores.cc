#include "kernels/scores.h"

#include <vector>

namespace switchyard::scores {
namespace {

std::vector<Kernel> detect() {
  std::vector<Kernel> found;
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f")) {
    found.push_back({"avx512-bf16", add_avx512_bf16});
  }
  found.push_back({"avx2", add_avx2});
  return found;
}

}  // namespace

std::span<const Kernel> kernels() {
  static const std::vector<Kernel> found = detect();
  return found;
}

}  // namespace switchyard::scores
