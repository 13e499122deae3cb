#pragma once

#include <immintrin.h>

namespace switchyard {

/** A thread's arithmetic as IEEE 754 has it: rounded to nearest, subnormal floats and all. */
constexpr unsigned usual_arithmetic = 0x1f80;

/** While it lives, this thread has the usual arithmetic: another library may have told it to take subnormal floats for zero. */
class UsualArithmetic {
 public:
  UsualArithmetic() : saved_(_mm_getcsr()) { _mm_setcsr(usual_arithmetic); }
  ~UsualArithmetic() { _mm_setcsr(saved_); }
  UsualArithmetic(const UsualArithmetic&) = delete;
  UsualArithmetic& operator=(const UsualArithmetic&) = delete;

 private:
  unsigned saved_;
};

}  // namespace switchyard
