// The final order of one query's candidates; see bliss_index/search/certificate/ordering.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace bliss {

struct Candidate {
  double value;  // inner product in float64
  double error;  // bound of its distance to the correctly rounded inner product
  std::uint32_t id;   // of the entry, by which equal values are ordered
  std::uint32_t row;  // where the entry is
};

// Exact inner product, rounded once (Shewchuk's expansions, rounded half-even as math.fsum does).
double exact_dot(const double* x, const double* t, std::size_t dim, bool products_are_exact);

// Counts, for each of at most kMostRanked numbers, those that are larger. Room for whole vectors.
using Rank = void (*)(const double* numbers, std::size_t count, std::uint32_t* larger);
constexpr std::size_t kMostRanked = 256;

// Put the k best candidates first, in their final order. Returns how many were evaluated exactly.
std::size_t order_candidates(Candidate* candidates, std::size_t count, std::size_t k, Rank rank,
                             const std::function<double(std::uint32_t)>& exact);

}  // namespace bliss
