// Compiled without contraction to fused operations: the results equal numpy's bit for bit.
#include "score_kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BLISS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define BLISS_CLONES
#endif

namespace bliss {
namespace {

constexpr std::size_t kRowsAtOnce = 96;
// Screening pays from this number of classes on, and where it leaves few of them.
constexpr std::size_t kScreenedClasses = 64, kMostLeft = 32;
// Within these, sums of products leave the range of neither float32 nor float64.
constexpr double kLargestNorm = 0x1p40, kLargestStatistic = 0x1p200;
constexpr std::size_t kLargestDim = 65536;

typedef float Floats8 __attribute__((vector_size(32)));
typedef double Doubles8 __attribute__((vector_size(64)));

// The product of two float32 numbers is exact in float64; one rounding, then one more to add it.
// The next entry's row is fetched meanwhile, at the same pace: all at once it would wait.
BLISS_CLONES void add_entry(double* sum, const float* scale, const float* shift, double similarity,
                            std::size_t classes, const float* next_scale, const float* next_shift) {
  std::size_t c = 0;
  for (; c + 16 <= classes; c += 16) {
    __builtin_prefetch(next_scale + c);
    __builtin_prefetch(next_shift + c);
    for (std::size_t i = c; i < c + 16; i += 8) {
      Floats8 a, b;
      Doubles8 total;
      std::memcpy(&a, scale + i, sizeof a);
      std::memcpy(&b, shift + i, sizeof b);
      std::memcpy(&total, sum + i, sizeof total);
      total += similarity * __builtin_convertvector(a, Doubles8) -
               __builtin_convertvector(b, Doubles8);
      std::memcpy(sum + i, &total, sizeof total);
    }
  }
  __builtin_prefetch(next_scale + classes - 1);
  __builtin_prefetch(next_shift + classes - 1);
  for (; c < classes; ++c) sum[c] += similarity * double(scale[c]) - double(shift[c]);
}

BLISS_CLONES void finish_row(const double* internal, double* sum, double k, double lambda,
                             std::size_t classes) {
  for (std::size_t c = 0; c < classes; ++c) sum[c] = internal[c] + lambda * (sum[c] / k);
}

BLISS_CLONES void to_internal(double* products, const double* mu, const double* sigma,
                              std::size_t classes) {
  for (std::size_t c = 0; c < classes; ++c) products[c] = (mu[c] - products[c]) / sigma[c];
}

BLISS_CLONES void narrow_row(const double* wide, float* narrow, std::size_t dim) {
  for (std::size_t i = 0; i < dim; ++i) narrow[i] = float(wide[i]);
}

template <class T>
std::size_t whole_units(std::size_t classes) {
  return (classes + kClassUnit<T> - 1) / kClassUnit<T> * kClassUnit<T>;
}

template <class T>
std::vector<T> in_strips(const double* texts, std::size_t classes, std::size_t dim) {
  const std::size_t padded = whole_units<T>(classes);
  std::vector<T> strips(padded * dim);
  for (std::size_t first = 0; first < padded; first += kClassStrip<T>) {
    const std::size_t width = std::min(kClassStrip<T>, padded - first);
    for (std::size_t c = first; c < std::min(classes, first + width); ++c)
      for (std::size_t i = 0; i < dim; ++i)
        strips[first * dim + i * width + (c - first)] = T(texts[c * dim + i]);
  }
  return strips;
}

bool within(double value, double least, double most) { return value >= least && value <= most; }

}  // namespace

// An image of a block and one of its classes that can be the nearest.
struct Doubtful {
  std::size_t row, at;  // of all images, and of the block
  std::size_t nearest;
  double external;
};

struct ScoreKernel::Work {
  std::vector<double> wide, internal, sum, total, lower, products;
  std::vector<float> narrow, products32;
  std::vector<std::size_t> rows;  // of the block, to be evaluated in full
  std::vector<std::uint32_t> left;
  std::vector<Doubtful> doubtful;
  std::vector<const double*> x, t;
};

ScoreKernel::ScoreKernel(const double* texts, const double* mu, const double* sigma, std::size_t classes,
           std::size_t dim, double lambda, const Kernel& kernel)
    : kernel_(kernel), classes_(classes), dim_(dim), lambda_(lambda),
      padded_(whole_units<double>(classes)), texts_(in_strips<double>(texts, classes, dim)),
      mu_(mu, mu + classes), sigma_(sigma, sigma + classes) {
  if (classes >= kScreenedClasses && dim <= kLargestDim && lambda <= kLargestStatistic)
    make_screen(texts);
}

// With p the float64 product that would be returned and q the float32 one, both sums of d fused
// operations in the order of the coordinates, of factors that are rounded to float32 for q,
//     |p - q| <= (d + 4) u |x| |t| 1.01 + tiny,   u = 2^-24, d <= 2^16
// (Higham, section 3.1; tiny covers what underflows). Divided by sigma this bounds the total, but for
// some roundings of float64, here 2^-48 of every term.
void ScoreKernel::make_screen(const double* texts) {
  Screen screen;
  const std::size_t padded = whole_units<float>(classes_);
  screen.base.assign(padded, 0x1p600);  // no class: never the smallest
  for (auto* of_class : {&screen.inverse, &screen.per_norm, &screen.slack})
    of_class->assign(padded, 0.0);
  for (std::size_t c = 0; c < classes_; ++c) {
    double square = 0;
    for (std::size_t i = 0; i < dim_; ++i) square += texts[c * dim_ + i] * texts[c * dim_ + i];
    const double norm = std::sqrt(square) * (1 + 1e-6) + 0x1p-80;
    if (!within(norm, 0, kLargestNorm) || !within(std::fabs(mu_[c]), 0, kLargestStatistic) ||
        !within(sigma_[c], 1 / kLargestStatistic, kLargestStatistic))
      return;
    screen.base[c] = mu_[c] / sigma_[c];
    screen.inverse[c] = 1 / sigma_[c];
    screen.per_norm[c] = (1.01 * double(dim_ + 4) * double(kUnit32) + 0x1p-48) * norm / sigma_[c];
    screen.slack[c] = (double(dim_) * 0x1p-80 + 0x1p-48 * std::fabs(mu_[c])) / sigma_[c];
  }
  screen.texts = in_strips<float>(texts, classes_, dim_);
  screen.rows.assign(texts, texts + classes_ * dim_);
  screen_ = std::move(screen);
}

void ScoreKernel::load_block(const Rows& images, std::size_t first, std::size_t last, Work& work) const {
  work.wide.resize(kRowsAtOnce * dim_);
  for (std::size_t row = first; row < last; ++row)
    kernel_.widen(images.row(row), images.type, dim_, work.wide.data() + (row - first) * dim_);
}

// Into `work.internal`, for the first images of `work.wide`.
void ScoreKernel::internal_rows(std::size_t rows, Work& work) const {
  work.internal.resize(kRowsAtOnce * padded_);
  kernel_.class_products64(work.wide.data(), rows, dim_, dim_, texts_.data(), padded_,
                           work.internal.data());
  for (std::size_t i = 0; i < rows; ++i)
    to_internal(work.internal.data() + i * padded_, mu_.data(), sigma_.data(), classes_);
}

bool ScoreKernel::internal(const Rows& images, std::size_t threads, const std::function<bool()>& idle,
                    double* out) const {
  const std::size_t blocks = (images.count + kRowsAtOnce - 1) / kRowsAtOnce;
  std::vector<Work> works(threads);
  return for_each_index(blocks, threads, idle, [&](std::size_t block, std::size_t worker) {
    const std::size_t first = block * kRowsAtOnce;
    const std::size_t last = std::min(images.count, first + kRowsAtOnce);
    load_block(images, first, last, works[worker]);
    internal_rows(last - first, works[worker]);
    for (std::size_t row = first; row < last; ++row) {
      const double* from = works[worker].internal.data() + (row - first) * padded_;
      std::copy(from, from + classes_, out + row * classes_);
    }
  });
}

void ScoreKernel::sum_entries(const Found& found, std::size_t row, double* sum) const {
  std::fill(sum, sum + classes_, 0.0);
  const std::size_t from = row * found.k, last = found.count * found.k - 1;
  for (std::size_t at = from; at < from + found.k; ++at) {
    const float* const entry = found.tables.row(found.ids[at], classes_);
    const float* const next = found.tables.row(found.ids[std::min(at + 1, last)], classes_);
    add_entry(sum, entry, entry + classes_, double(found.similarities[at]), classes_, next,
              next + classes_);
  }
}

void ScoreKernel::screen_block(const Found& found, std::size_t first, const Winners& winners,
                        Work& work) const {
  const double k = double(found.k);
  const std::size_t padded = screen_.base.size(), rows = work.rows.size();
  work.narrow.resize(kRowsAtOnce * dim_);
  work.products32.resize(kRowsAtOnce * padded);
  work.lower.resize(padded);
  work.left.resize(classes_);
  narrow_row(work.wide.data(), work.narrow.data(), rows * dim_);
  kernel_.class_products32(work.narrow.data(), rows, dim_, dim_, screen_.texts.data(), padded,
                           work.products32.data());
  work.rows.clear();
  work.doubtful.clear();
  for (std::size_t i = 0; i < rows; ++i) {
    const float* const x = work.narrow.data() + i * dim_;
    const double norm = std::sqrt(double(kernel_.dot32_f32(x, x, dim_))) * (1 + 1e-3);
    if (!within(norm, 1 / kLargestNorm, kLargestNorm)) {
      work.rows.push_back(i);
      continue;
    }
    sum_entries(found, first + i, work.sum.data());
    const std::size_t left = kernel_.smallest(
        {classes_, work.products32.data() + i * padded, work.sum.data(), screen_.base.data(),
         screen_.inverse.data(), screen_.per_norm.data(), screen_.slack.data(), norm, lambda_ / k,
         work.lower.data()},
        work.left.data());
    if (left > kMostLeft) {
      work.rows.push_back(i);
      continue;
    }
    for (std::size_t j = 0; j < left; ++j)
      work.doubtful.push_back({first + i, i, work.left[j], work.sum[work.left[j]] / k});
  }
  const std::size_t count = work.doubtful.size();
  work.products.resize(count);
  work.x.clear();
  work.t.clear();
  for (const Doubtful& pair : work.doubtful) {
    work.x.push_back(work.wide.data() + pair.at * dim_);
    work.t.push_back(screen_.rows.data() + pair.nearest * dim_);
  }
  kernel_.pair_products(work.x.data(), work.t.data(), count, dim_, work.products.data());
  for (std::size_t i = 0; i < count; ++i) {
    const auto [row, at, nearest, external] = work.doubtful[i];
    const double internal = (mu_[nearest] - work.products[i]) / sigma_[nearest];
    const double total = internal + lambda_ * external;
    if (i > 0 && work.doubtful[i - 1].row == row && !(total < winners.anomaly[row])) continue;
    winners.anomaly[row] = total;
    winners.nearest[row] = std::int64_t(nearest);
    winners.internal[row] = internal;
    winners.external[row] = external;
  }
}

bool ScoreKernel::score(const Rows& images, const Found& found, std::size_t threads,
                 const std::function<bool()>& idle, const Winners& winners) const {
  const std::size_t blocks = (images.count + kRowsAtOnce - 1) / kRowsAtOnce;
  const double k = double(found.k);
  const auto score_row = [&](std::size_t row, const double* internal, Work& work) {
    double* const sum = work.sum.data();
    double* const total = work.total.data();
    sum_entries(found, row, sum);
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
    work.sum.resize(whole_units<float>(classes_));
    work.total.resize(classes_);
    const std::size_t first = block * kRowsAtOnce;
    const std::size_t last = std::min(images.count, first + kRowsAtOnce);
    load_block(images, first, last, work);
    work.rows.clear();
    for (std::size_t i = 0; i < last - first; ++i) work.rows.push_back(i);
    if (!screen_.base.empty()) screen_block(found, first, winners, work);
    // Those left over move to the front.
    for (std::size_t j = 0; j < work.rows.size(); ++j)
      if (work.rows[j] != j)
        std::copy_n(work.wide.data() + work.rows[j] * dim_, dim_, work.wide.data() + j * dim_);
    if (!work.rows.empty()) internal_rows(work.rows.size(), work);
    for (std::size_t j = 0; j < work.rows.size(); ++j)
      score_row(first + work.rows[j], work.internal.data() + j * padded_, work);
  });
}

}  // namespace bliss
