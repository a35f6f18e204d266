// Compiled without contraction to fused operations: the results equal numpy's bit for bit.
#include "tail.h"

#include <algorithm>

#if defined(__GNUC__) && !defined(__clang__)
#define BLISS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BLISS_CLONES
#endif

namespace bliss {
namespace {

constexpr std::size_t kRowsAtOnce = 96;

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

BLISS_CLONES void to_internal(double* products, const double* mu, const double* sigma,
                              std::size_t classes) {
  for (std::size_t c = 0; c < classes; ++c) products[c] = (mu[c] - products[c]) / sigma[c];
}

}  // namespace

struct Tail::Work {
  std::vector<double> wide, internal, sum, total;
};

Tail::Tail(const double* texts, const double* mu, const double* sigma, std::size_t classes,
           std::size_t dim, double lambda, const Kernel& kernel)
    : kernel_(kernel), classes_(classes),
      padded_((classes + kClassUnit - 1) / kClassUnit * kClassUnit), dim_(dim), lambda_(lambda),
      texts_(padded_ * dim), mu_(mu, mu + classes), sigma_(sigma, sigma + classes) {
  for (std::size_t first = 0; first < padded_; first += kClassStrip) {
    const std::size_t width = std::min(kClassStrip, padded_ - first);
    for (std::size_t c = first; c < std::min(classes, first + width); ++c)
      for (std::size_t i = 0; i < dim; ++i)
        texts_[first * dim + i * width + (c - first)] = texts[c * dim + i];
  }
}

// Into `work.internal`, a row per image.
void Tail::internal_block(const Rows& images, std::size_t first, std::size_t last,
                          Work& work) const {
  work.wide.resize(kRowsAtOnce * dim_);
  work.internal.resize(kRowsAtOnce * padded_);
  for (std::size_t row = first; row < last; ++row)
    kernel_.widen(images.row(row), images.type, dim_, work.wide.data() + (row - first) * dim_);
  kernel_.class_products(work.wide.data(), last - first, dim_, texts_.data(), padded_,
                         work.internal.data());
  for (std::size_t i = 0; i < last - first; ++i)
    to_internal(work.internal.data() + i * padded_, mu_.data(), sigma_.data(), classes_);
}

bool Tail::internal(const Rows& images, std::size_t threads, const std::function<bool()>& idle,
                    double* out) const {
  const std::size_t blocks = (images.count + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<Work> works(threads);
  return for_each_index(blocks, threads, idle, [&](std::size_t block, std::size_t worker) {
    const std::size_t first = block * kRowsAtOnce;
    const std::size_t last = std::min(images.count, first + kRowsAtOnce);
    internal_block(images, first, last, works[worker]);
    for (std::size_t row = first; row < last; ++row) {
      const double* from = works[worker].internal.data() + (row - first) * padded_;
      std::copy(from, from + classes_, out + row * classes_);
    }
  });
}

bool Tail::score(const Rows& images, const Found& found, std::size_t threads,
                 const std::function<bool()>& idle, const Winners& winners) const {
  const std::size_t blocks = (images.count + kRowsAtOnce - 1) / kRowsAtOnce;
  const double k = double(found.k);
  const auto score_row = [&](std::size_t row, const double* internal, Work& work) {
    double* const sum = work.sum.data();
    double* const total = work.total.data();
    std::fill(sum, sum + classes_, 0.0);
    for (std::size_t j = 0; j < found.k; ++j) {
      const std::size_t at = row * found.k + j;
      const std::size_t entry = std::size_t(found.ids[at]) * classes_;
      if (j + 1 < found.k) {
        const std::size_t next = std::size_t(found.ids[at + 1]) * classes_;
        for (std::size_t c = 0; c < classes_; c += 16) {
          __builtin_prefetch(found.scale + next + c);
          __builtin_prefetch(found.shift + next + c);
        }
      }
      add_entry(sum, found.scale + entry, found.shift + entry, double(found.similarities[at]),
                classes_);
    }
    std::copy(sum, sum + classes_, total);
    finish_row(internal, total, k, lambda_, classes_);
    std::size_t best = 0;
    for (std::size_t c = 1; c < classes_; ++c)
      if (total[c] < total[best]) best = c;
    winners.anomaly[row] = total[best];
    winners.nearest[row] = std::int64_t(best);
    winners.internal[row] = internal[best];
    winners.external[row] = sum[best] / k;
  };
  std::vector<Work> works(threads);
  return for_each_index(blocks, threads, idle, [&](std::size_t block, std::size_t worker) {
    Work& work = works[worker];
    work.sum.resize(classes_);
    work.total.resize(classes_);
    const std::size_t first = block * kRowsAtOnce;
    const std::size_t last = std::min(images.count, first + kRowsAtOnce);
    internal_block(images, first, last, work);
    for (std::size_t row = first; row < last; ++row)
      score_row(row, work.internal.data() + (row - first) * padded_, work);
  });
}

}  // namespace bliss
