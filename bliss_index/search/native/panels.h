// Walking through panels.
#pragma once

#include <cstddef>

#include "kernel.h"

namespace bliss {
namespace {

inline void nothing() {}

// The next panel lies elsewhere: a part of it is fetched with every group of queries.
class Fetch {
 public:
  Fetch(const Panel& panel, std::size_t bytes, std::size_t parts)
      : at_(reinterpret_cast<const char*>(panel.next)), end_(at_ + bytes),
        size_((bytes / parts + 63) / 64 * 64) {}
  void part() {
    const char* const stop = std::size_t(end_ - at_) < size_ ? end_ : at_ + size_;
    for (; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char* at_;
  const char* end_;
  std::size_t size_;
};

}  // namespace
}  // namespace bliss
