// Arrays that are walked in large strides: on Linux in huge pages, where the system grants them.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace bliss {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

template <class T>
using LargeArray = std::unique_ptr<T[], Free>;

// A vector that starts at a cache line: whole registers of it then never lie in two lines.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)));
  }
  void deallocate(T* p, std::size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};
template <class T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

// Not initialised; aligned to a cache line, and to a huge page if it is as large as one.
template <class T>
LargeArray<T> make_large_array(std::size_t count) {
  constexpr std::size_t line = 64, huge = std::size_t(2) << 20;
  const std::size_t bytes = count * sizeof(T), unit = bytes >= huge ? huge : line;
  void* const p = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit);
  if (!p) throw std::bad_alloc();
#ifdef __linux__
  if (unit == huge) (void)madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return LargeArray<T>(static_cast<T*>(p));
}

}  // namespace bliss
