// The floating-point unit as C starts it, whatever the calling thread has made of it.
#pragma once

#include <xmmintrin.h>

namespace bliss {

// Rounds to nearest, keeps denormals and traps nothing for as long as it lives. A thread inherits
// this from the thread that starts it, so a caller's flush-to-zero would reach every worker.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultFloatingPoint() { _mm_setcsr(saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  unsigned saved_;
};

}  // namespace bliss
