// Compiled without contraction to fused operations: the same bits for any instruction set.
#include "variances.h"

#include <algorithm>

namespace bliss {
namespace {

constexpr std::size_t kTexts = 512;  // of a block: a thread's share of one class
constexpr std::size_t kWidth = kClassStrip<double>, kUnit = kClassUnit<double>;

// Columns of a matrix side by side, coordinate by coordinate, as the products want them.
struct Strip {
  std::size_t first, columns, width;  // the width in whole units; what is beyond is zero
  std::size_t depth;                  // coordinates
};

Strip strip_at(std::size_t first, std::size_t count, std::size_t depth) {
  const std::size_t columns = std::min(kWidth, count - first);
  return {first, columns, (columns + kUnit - 1) / kUnit * kUnit, depth};
}

void pack_images(const double* images, std::size_t dim, const Strip& s, double* out) {
  // A line of an image at a time.
  for (std::size_t from = 0; from < dim; from += kUnit)
    for (std::size_t j = 0; j < s.width; ++j)
      for (std::size_t i = from; i < std::min(dim, from + kUnit); ++i)
        out[i * s.width + j] = j < s.columns ? images[(s.first + j) * dim + i] : 0;
}

// Half of a symmetric matrix is enough: t' S t is the sum of t_i t_j S_ij over i = j, and of twice
// that over i < j.
void pack_upper(const double* matrix, std::size_t dim, const Strip& s, double* out) {
  for (std::size_t i = 0; i < s.depth; ++i)
    for (std::size_t j = 0; j < s.width; ++j) {
      const std::size_t column = s.first + j;
      const bool inside = j < s.columns && i <= column;
      out[i * s.width + j] = inside ? matrix[i * dim + column] * (i < column ? 2 : 1) : 0;
    }
}

// The sum of `columns` numbers, in an order of its own that vectors can follow.
template <class Term>
double sum_of(std::size_t columns, Term term) {
  double lane[kUnit] = {};
  std::size_t j = 0;
  for (; j + kUnit <= columns; j += kUnit)
    for (std::size_t l = 0; l < kUnit; ++l) lane[l] += term(j + l);
  for (std::size_t l = 0; j < columns; ++j, ++l) lane[l] += term(j);
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

struct Work {
  AlignedVector<double> strip, products;
};

void add_class(const Kernel& kernel, const double* texts, std::size_t count, std::size_t dim,
               const ClassImages& images, const double* means, std::size_t stride, double* squares,
               Work& work) {
  const std::size_t columns = images.count ? images.count : dim;
  work.strip.resize(kWidth * dim);
  work.products.resize(kTexts * kWidth);
  double* const products = work.products.data();
  for (std::size_t first = 0; first < columns; first += kWidth) {
    Strip s = strip_at(first, columns, dim);
    if (images.count) {
      pack_images(images.rows, dim, s, work.strip.data());
    } else {
      s.depth = s.first + s.columns;
      pack_upper(images.rows, dim, s, work.strip.data());
    }
    kernel.class_products64(texts, count, dim, s.depth, work.strip.data(), s.width, products);
    for (std::size_t t = 0; t < count; ++t) {
      const double* const product = products + t * s.width;
      const double* const text = texts + t * dim + first;
      const double mean = means[t * stride];
      squares[t * stride] +=
          images.count ? sum_of(s.columns, [&](std::size_t j) {
            return (product[j] - mean) * (product[j] - mean);
          })
                       : sum_of(s.columns, [&](std::size_t j) { return product[j] * text[j]; });
    }
  }
}

// A block of texts: read, and multiplied with the means of all classes.
void begin_block(const Kernel& kernel, const Rows& texts, std::size_t first, std::size_t count,
                 const std::vector<ClassImages>& classes, double* wide, double* means,
                 double* squares, Work& work) {
  const std::size_t dim = texts.dim, all = classes.size();
  for (std::size_t t = 0; t < count; ++t)
    kernel.widen(texts.row(first + t), texts.type, dim, wide + t * dim);
  work.strip.resize(kWidth * dim);
  work.products.resize(kTexts * kWidth);
  for (std::size_t c = 0; c < all; c += kWidth) {
    const Strip s = strip_at(c, all, dim);
    for (std::size_t i = 0; i < dim; ++i)
      for (std::size_t j = 0; j < s.width; ++j)
        work.strip[i * s.width + j] = j < s.columns ? classes[c + j].mean[i] : 0;
    kernel.class_products64(wide, count, dim, dim, work.strip.data(), s.width,
                            work.products.data());
    for (std::size_t t = 0; t < count; ++t)
      for (std::size_t j = 0; j < s.columns; ++j) {
        means[t * all + c + j] = work.products[t * s.width + j];
        squares[t * all + c + j] = 0;
      }
  }
}

}  // namespace

bool class_variances(const Rows& texts, const std::vector<ClassImages>& classes,
                     const Kernel& kernel, std::size_t threads, const std::function<bool()>& idle,
                     double* means, double* squares) {
  const std::size_t dim = texts.dim, all = classes.size();
  const std::size_t blocks = (texts.count + kTexts - 1) / kTexts;
  const auto size = [&](std::size_t b) { return std::min(kTexts, texts.count - b * kTexts); };
  std::vector<Work> work(threads);
  AlignedVector<double> wide(texts.count * dim);
  const auto at = [&](double* of, std::size_t b) { return of + b * kTexts * all; };
  if (!for_each_index(blocks, threads, idle, [&](std::size_t b, std::size_t worker) {
        begin_block(kernel, texts, b * kTexts, size(b), classes, wide.data() + b * kTexts * dim,
                    at(means, b), at(squares, b), work[worker]);
      }))
    return false;
  return for_each_index(blocks * all, threads, idle, [&](std::size_t i, std::size_t worker) {
    const std::size_t b = i / all, c = i % all;
    add_class(kernel, wide.data() + b * kTexts * dim, size(b), dim, classes[c], at(means, b) + c,
              all, at(squares, b) + c, work[worker]);
  });
}

}  // namespace bliss
