// What follows the search: internal scores, normalised similarities summed for every class, and the
// smallest total.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "engine.h"

namespace bliss {

// What normalises similarities: of every entry that is known, a row of the scales of all classes and
// then of their shifts. The first rows are kept from earlier, the others behind them are new.
struct Tables {
  const std::int64_t* places;  // of an entry's row
  std::size_t kept_rows;
  const float* kept;
  const float* fresh;
  const float* row(std::int64_t entry, std::size_t classes) const {
    const std::size_t place = std::size_t(places[entry]);
    return place < kept_rows ? kept + 2 * classes * place : fresh + 2 * classes * (place - kept_rows);
  }
};

// What the search found, and the tables that normalise it. Arrays are C-contiguous: similarities
// and ids (rows x k).
struct Found {
  const float* similarities;
  const std::int64_t* ids;
  std::size_t count, k;
  Tables tables;
};

// A number per row.
struct Winners {
  double* anomaly;
  std::int64_t* nearest;
  double* internal;
  double* external;
};

class ScoreKernel {
 public:
  // texts (classes x dim); mu and sigma of each class on its own text.
  ScoreKernel(const double* texts, const double* mu, const double* sigma, std::size_t classes,
       std::size_t dim, double lambda, const Kernel& kernel);

  // Both return false when `idle` asked to stop.
  bool score(const Rows& images, const Found& found, std::size_t threads,
             const std::function<bool()>& idle, const Winners& winners) const;
  // (rows x classes)
  bool internal(const Rows& images, std::size_t threads, const std::function<bool()>& idle,
                double* out) const;

 private:
  struct Work;
  // Float32 texts and what bounds the totals made with them. Empty where classes are few, or have
  // numbers for which the bounds are not made.
  struct Screen {
    std::vector<float> texts;  // in strips
    std::vector<double> rows;  // (classes x dim)
    std::vector<double> base, inverse, per_norm, slack;
  };
  void make_screen(const double* texts);
  void load_block(const Rows& images, std::size_t first, std::size_t last, Work& work) const;
  void internal_rows(std::size_t rows, Work& work) const;
  // Of the images of a block, those whose winners are now known are taken off `work.rows`.
  void screen_block(const Found& found, std::size_t first, const Winners& winners,
                    Work& work) const;
  void sum_entries(const Found& found, std::size_t row, double* sum) const;

  const Kernel& kernel_;
  std::size_t classes_, dim_;
  double lambda_;
  std::size_t padded_;         // classes in whole units
  std::vector<double> texts_;  // in strips
  std::vector<double> mu_, sigma_;
  Screen screen_;
};

}  // namespace bliss
