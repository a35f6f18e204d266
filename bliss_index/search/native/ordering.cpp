#include "ordering.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace bliss {
namespace {

// A sum kept without error as numbers that do not overlap, smallest first.
class Expansion {
 public:
  void add(double x) {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      double y = parts_[i];
      if (std::fabs(x) < std::fabs(y)) std::swap(x, y);
      const double high = x + y;
      const double low = y - (high - x);
      if (low != 0) parts_[kept++] = low;
      x = high;
    }
    parts_.resize(kept);
    if (x != 0) parts_.push_back(x);
  }

  double rounded() const {
    std::size_t left = parts_.size();
    if (left == 0) return 0.0;
    double high = parts_[--left], low = 0;
    while (left > 0) {
      const double x = high, y = parts_[--left];
      high = x + y;
      low = y - (high - x);
      if (low != 0) break;
    }
    // A half-way case is decided by the sign of the next part.
    if (left > 0 && ((low < 0 && parts_[left - 1] < 0) || (low > 0 && parts_[left - 1] > 0))) {
      const double twice = low * 2, x = high + twice;
      if (twice == x - high) high = x;
    }
    return high + 0.0;
  }

 private:
  std::vector<double> parts_;
};

bool before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// Dozens of candidates are sorted by counting the larger ones of each: no branch depends on them.
void sort(Candidate* candidates, std::size_t count, Rank rank) {
  constexpr std::size_t few = 16, room = 8;
  if (count > few && count <= kMostRanked) {
    double values[kMostRanked + room];
    std::uint32_t larger[kMostRanked + room];
    Candidate sorted[kMostRanked];
    for (std::size_t i = 0; i < count; ++i) values[i] = candidates[i].value;
    rank(values, count, larger);
    std::size_t sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      sum += larger[i];
      sorted[larger[i]] = candidates[i];
    }
    if (sum == count * (count - 1) / 2) {  // less where values are equal
      std::copy(sorted, sorted + count, candidates);
      return;
    }
  }
  std::sort(candidates, candidates + count, before);
}

}  // namespace

double exact_dot(const double* x, const double* t, std::size_t dim, bool products_are_exact) {
  Expansion sum;
  for (std::size_t i = 0; i < dim; ++i) {
    const double product = x[i] * t[i];
    sum.add(product);
    if (!products_are_exact) {
      const double error = std::fma(x[i], t[i], -product);
      if (error != 0) sum.add(error);
    }
  }
  return sum.rounded();
}

std::size_t order_candidates(Candidate* candidates, std::size_t count, std::size_t k, Rank rank,
                             const std::function<double(std::uint32_t)>& exact) {
  double spread = 0;
  for (std::size_t i = 0; i < count; ++i) {
    candidates[i].value += 0.0;
    spread = std::max(spread, candidates[i].error);
  }
  if (count > 2 * k) {
    std::nth_element(candidates, candidates + (k - 1), candidates + count,
                     [](const Candidate& a, const Candidate& b) { return a.value > b.value; });
    const double least = candidates[k - 1].value - 4 * spread;
    count = std::size_t(std::remove_if(candidates + k, candidates + count,
                                       [least](const Candidate& c) { return c.value < least; }) -
                        candidates);
  }
  sort(candidates, count, rank);
  const double least = candidates[k - 1].value - 4 * spread;
  std::size_t evaluated = 0;
  double previous = INFINITY;  // value before it was replaced by the exact one
  for (std::size_t i = 0; i < count && candidates[i].value >= least; ++i) {
    Candidate& c = candidates[i];
    const double value = c.value;
    bool doubtful = previous - value <= 2 * spread ||
                    (i + 1 < count && value - candidates[i + 1].value <= 2 * spread);
    if (i < k) doubtful |= float(value - c.error) != float(value + c.error);
    previous = value;
    if (doubtful && c.error > 0) {
      c.value = exact(c.row);
      ++evaluated;
    }
  }
  if (evaluated) std::sort(candidates, candidates + count, before);
  return evaluated;
}

}  // namespace bliss
