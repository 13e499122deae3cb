#pragma once

#include <limits>

namespace switchyard {

/**
 * What stands between an expert's matrices.
 * swiglu: y = down · (silu(gate · x) * (up · x)), silu(v) = v / (1 + exp(-v)).
 * geglu: the same with gelu(v) = v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v³))).
 * gelu: y = down · gelu(up · x), gelu(v) = v / 2 * (1 + erf(v / sqrt(2))).
 * relu2: y = down · max(up · x, 0)².
 * identity: y = x, whatever the matrices.
 */
enum class Activation { swiglu, geglu, gelu, relu2, identity };

constexpr bool is_gated(Activation activation) { return activation == Activation::swiglu || activation == Activation::geglu; }

/**
 * With g = min(gate · x, gate_max), swiglu is min(g * sigmoid(alpha * g), activation_max) * (clamp(up · x, -up_max, up_max) +
 * up_offset). The defaults change no bit: adding negative zero changes nothing.
 */
struct GluForm {
  float alpha = 1;
  float gate_max = std::numeric_limits<float>::infinity();
  float activation_max = std::numeric_limits<float>::infinity();
  float up_max = std::numeric_limits<float>::infinity();
  float up_offset = -0.0f;

  bool operator==(const GluForm&) const = default;
};

}  // namespace switchyard
