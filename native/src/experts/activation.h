#pragma once

namespace switchyard {

/**
 * What stands between an expert's matrices.
 * swiglu: y = down · (silu(gate · x) * (up · x)), silu(v) = v / (1 + exp(-v)).
 * gelu: y = down · gelu(up · x), gelu(v) = v / 2 * (1 + erf(v / sqrt(2))).
 */
enum class Activation { swiglu, gelu };

}  // namespace switchyard
