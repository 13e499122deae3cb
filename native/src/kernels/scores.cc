#include "kernels/scores.h"

#include <vector>

namespace switchyard::scores {
namespace {

bool has_avx512() { return __builtin_cpu_supports("avx512f"); }

/** AMD computes a VDPBF16PS in the time of one fused multiply-add; Intel takes longer for it than for the two that it replaces. */
std::vector<Kernel<Bf16Pair>> detect_bf16() {
  std::vector<Kernel<Bf16Pair>> found{avx2_bf16};
  if (has_avx512()) found.insert(found.begin(), avx512_bf16);
  if (has_avx512() && __builtin_cpu_supports("avx512bf16")) {
    found.insert(__builtin_cpu_is("intel") ? found.end() : found.begin(), avx512_dot);
  }
  return found;
}

std::vector<Kernel<float>> detect_float() {
  if (has_avx512()) return {avx512_float, avx2_float};
  return {avx2_float};
}

}  // namespace

template <>
std::span<const Kernel<Bf16Pair>> kernels() {
  static const std::vector<Kernel<Bf16Pair>> found = detect_bf16();
  return found;
}

template <>
std::span<const Kernel<float>> kernels() {
  static const std::vector<Kernel<float>> found = detect_float();
  return found;
}

}  // namespace switchyard::scores
