// Included by the file of each instruction set, inside its anonymous namespace: the functions must be
// compiled for that set, so they cannot be shared. The file defines SWITCHYARD_INLINE (its target
// attribute, always inlined) and a vector type `Vector` of float32 lanes with the operations used here.

/** 2^n * polynomial on [-1/2, 1/2], relative error 1e-7. Infinite above 88.7, zero below -104, NaN stays. */
SWITCHYARD_INLINE Vector exponential(Vector x) {
  x = Vector::maximum(Vector::set(-120.0f), Vector::minimum(Vector::set(120.0f), x));
  const Vector n = Vector::round(x * Vector::set(1.44269504f));
  // ln 2 in two parts, so that n * ln 2 loses nothing.
  Vector r = Vector::multiply_add(n, Vector::set(-0.693145752f), x);
  r = Vector::multiply_add(n, Vector::set(-1.42860677e-6f), r) * Vector::set(1.44269504f);
  Vector p = Vector::set(0.00132764668f);
  p = Vector::multiply_add(p, r, Vector::set(0.00967554129f));
  p = Vector::multiply_add(p, r, Vector::set(0.0555071329f));
  p = Vector::multiply_add(p, r, Vector::set(0.240221197f));
  p = Vector::multiply_add(p, r, Vector::set(0.693146967f));
  p = Vector::multiply_add(p, r, Vector::set(1.0f));
  return Vector::scale(p, n);
}

struct Swiglu {
  SWITCHYARD_INLINE static Vector of(Vector gate, Vector up, const GluForm& form) {
    const Vector g = Vector::minimum(Vector::set(form.gate_max), gate);
    const Vector v = g / (Vector::set(1.0f) + exponential(Vector::set(0.0f) - g * Vector::set(form.alpha)));
    const Vector bounded = Vector::maximum(Vector::set(-form.up_max), Vector::minimum(Vector::set(form.up_max), up));
    return Vector::minimum(Vector::set(form.activation_max), v) * (bounded + Vector::set(form.up_offset));
  }
};

/** v / 2 * (1 + tanh(y)) = v / (1 + exp(-2 y)), y = sqrt(2 / pi) * (v + 0.044715 v³). */
struct Geglu {
  SWITCHYARD_INLINE static Vector of(Vector gate, Vector up, const GluForm&) {
    const Vector inner = Vector::multiply_add(gate * gate, Vector::set(0.044715f), Vector::set(1.0f)) * gate;
    const Vector power = exponential(inner * Vector::set(-1.59576912f));
    return gate / (Vector::set(1.0f) + power) * up;
  }
};

/**
 * v / 2 * (1 + erf(v / sqrt(2))), relative error 3e-7 of erfc: with z = |v| / sqrt(2) and
 * t = 1 / (1 + 0.44 z), erfc(z) = t * P(t) * exp(-z²), P fitted for the smallest largest relative error.
 */
struct Gelu {
  SWITCHYARD_INLINE static Vector of(Vector v) {
    const Vector one = Vector::set(1.0f);
    const Vector z = Vector::absolute(v) * Vector::set(0.707106781f);
    const Vector t = one / Vector::multiply_add(z, Vector::set(0.44f), one);
    Vector p = Vector::set(0.0713337351f);
    p = Vector::multiply_add(p, t, Vector::set(-0.278429417f));
    p = Vector::multiply_add(p, t, Vector::set(0.297560003f));
    p = Vector::multiply_add(p, t, Vector::set(-0.0210286195f));
    p = Vector::multiply_add(p, t, Vector::set(0.216287511f));
    p = Vector::multiply_add(p, t, Vector::set(0.217160584f));
    p = Vector::multiply_add(p, t, Vector::set(0.248897238f));
    p = Vector::multiply_add(p, t, Vector::set(0.248219149f));
    const Vector tail = t * p * exponential(Vector::set(0.0f) - z * z) * Vector::set(0.5f);
    return v * Vector::select_negative(v, tail, one - tail);
  }
};

struct Relu2 {
  SWITCHYARD_INLINE static Vector of(Vector v) {
    const Vector positive = Vector::maximum(Vector::set(0.0f), v);
    return positive * positive;
  }
};

/** No activation. */
struct Rounding {
  SWITCHYARD_INLINE static Vector of(Vector v) { return v; }
};
