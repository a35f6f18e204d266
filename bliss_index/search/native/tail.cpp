// Compiled without contraction to fused operations: the results equal numpy's bit for bit.
#include "tail.h"

#include <vector>

#include "engine.h"

#if defined(__GNUC__) && !defined(__clang__)
#define BLISS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BLISS_CLONES
#endif

namespace bliss {
namespace {

constexpr std::size_t kRowsAtOnce = 64;

// The product of two float32 numbers is exact in float64; one rounding, then one more to add it.
BLISS_CLONES void add_entry(double* sum, const float* scale, const float* shift, double similarity,
                            std::size_t classes) {
  for (std::size_t c = 0; c < classes; ++c)
    sum[c] += similarity * double(scale[c]) - double(shift[c]);
}

BLISS_CLONES void finish_row(const double* internal, double* sum, double k, double lambda,
                             std::size_t classes) {
  for (std::size_t c = 0; c < classes; ++c) sum[c] = internal[c] + lambda * (sum[c] / k);
}

void score_row(const Tail& tail, std::size_t row, double* sum, double* total) {
  const std::size_t classes = tail.classes;
  for (std::size_t c = 0; c < classes; ++c) sum[c] = 0;
  for (std::size_t j = 0; j < tail.k; ++j) {
    const std::size_t at = row * tail.k + j;
    const std::size_t entry = std::size_t(tail.ids[at]) * classes;
    if (j + 1 < tail.k) {
      const std::size_t next = std::size_t(tail.ids[at + 1]) * classes;
      for (std::size_t c = 0; c < classes; c += 16) {
        __builtin_prefetch(tail.scale + next + c);
        __builtin_prefetch(tail.shift + next + c);
      }
    }
    add_entry(sum, tail.scale + entry, tail.shift + entry, double(tail.similarities[at]), classes);
  }
  const double* internal = tail.internal + row * classes;
  for (std::size_t c = 0; c < classes; ++c) total[c] = sum[c];
  finish_row(internal, total, double(tail.k), tail.lambda, classes);
  std::size_t best = 0;
  for (std::size_t c = 1; c < classes; ++c)
    if (total[c] < total[best]) best = c;
  tail.anomaly[row] = total[best];
  tail.nearest[row] = std::int64_t(best);
  tail.nearest_internal[row] = internal[best];
  tail.nearest_external[row] = sum[best] / double(tail.k);
}

}  // namespace

bool score_tail(const Tail& tail, std::size_t threads, const std::function<bool()>& idle) {
  const std::size_t blocks = (tail.rows + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<std::vector<double>> work(threads);
  return for_each_index(blocks, threads, idle, [&](std::size_t block, std::size_t worker) {
    work[worker].resize(2 * tail.classes);
    double* sum = work[worker].data();
    const std::size_t stop = std::min(tail.rows, (block + 1) * kRowsAtOnce);
    for (std::size_t row = block * kRowsAtOnce; row < stop; ++row)
      score_row(tail, row, sum, sum + tail.classes);
  });
}

}  // namespace bliss
