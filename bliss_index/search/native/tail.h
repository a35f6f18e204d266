// What follows the search: normalised similarities summed for every class, and the smallest total.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace bliss {

// Arrays are C-contiguous: similarities and ids (rows x k), tables (entries x classes), internal
// scores (rows x classes); the four results have a number per row.
struct Tail {
  const float* similarities;
  const std::int64_t* ids;
  const float* scale;
  const float* shift;
  const double* internal;
  std::size_t rows, k, classes;
  double lambda;
  double* anomaly;
  std::int64_t* nearest;
  double* nearest_internal;
  double* nearest_external;
};

// Returns false when `idle` asked to stop.
bool score_tail(const Tail& tail, std::size_t threads, const std::function<bool()>& idle);

}  // namespace bliss
