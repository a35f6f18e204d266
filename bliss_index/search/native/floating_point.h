// The floating-point unit as C starts it, whatever the calling thread has made of it.
#pragma once

#include <cstdint>

#ifndef __aarch64__
#include <xmmintrin.h>
#endif

namespace bliss {

// Rounds to nearest, keeps denormals and traps nothing for as long as it lives. A thread inherits
// this from the thread that starts it, so a caller's flush-to-zero would reach every worker.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() : saved_(get()) { set(kDefault); }
  ~DefaultFloatingPoint() { set(saved_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
#ifdef __aarch64__
  static constexpr std::uint64_t kDefault = 0;
  static std::uint64_t get() {
    std::uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    return control;
  }
  static void set(std::uint64_t control) { __asm__ volatile("msr fpcr, %0" : : "r"(control)); }
#else
  static constexpr std::uint64_t kDefault = 0x1f80;
  static std::uint64_t get() { return _mm_getcsr(); }
  static void set(std::uint64_t control) { _mm_setcsr(unsigned(control)); }
#endif

  std::uint64_t saved_;
};

}  // namespace bliss
