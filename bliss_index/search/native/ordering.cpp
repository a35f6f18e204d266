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

std::size_t order_candidates(std::vector<Candidate>& candidates, std::size_t k,
                             const std::function<double(std::uint32_t)>& exact) {
  double spread = 0;
  for (Candidate& c : candidates) {
    c.value += 0.0;
    spread = std::max(spread, c.error);
  }
  const auto by_value = [](const Candidate& a, const Candidate& b) { return a.value > b.value; };
  if (candidates.size() > 2 * k) {
    std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), by_value);
    const double least = candidates[k - 1].value - 4 * spread;
    candidates.erase(std::remove_if(candidates.begin() + k, candidates.end(),
                                    [least](const Candidate& c) { return c.value < least; }),
                     candidates.end());
  }
  std::sort(candidates.begin(), candidates.end(), before);
  const double least = candidates[k - 1].value - 4 * spread;
  std::size_t evaluated = 0;
  double previous = INFINITY;  // value before it was replaced by the exact one
  for (std::size_t i = 0; i < candidates.size() && candidates[i].value >= least; ++i) {
    Candidate& c = candidates[i];
    const double value = c.value;
    bool doubtful = previous - value <= 2 * spread ||
                    (i + 1 < candidates.size() && value - candidates[i + 1].value <= 2 * spread);
    if (i < k) doubtful |= float(value - c.error) != float(value + c.error);
    previous = value;
    if (doubtful && c.error > 0) {
      c.value = exact(c.id);
      ++evaluated;
    }
  }
  if (evaluated) std::sort(candidates.begin(), candidates.end(), before);
  return evaluated;
}

}  // namespace bliss
