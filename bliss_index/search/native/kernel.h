// What a kernel offers: the functions that are compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bliss {

constexpr std::size_t kPanel = 48;   // entries in a panel
constexpr std::size_t kGroup = 8;    // queries in a group
constexpr float kUnit32 = 0x1p-24f;  // unit roundoff of float32

enum class Type { float16, float32, float64 };

inline std::size_t type_bytes(Type type) {
  return type == Type::float16 ? 2 : type == Type::float32 ? 4 : 8;
}

// 48 entries: int8 in order [step of 4 coordinates][entry][4], and what turns integer dots into
// scores.
struct Panel {
  const std::int8_t* codes;
  const std::int32_t* correction;  // start value that undoes the offset of the query's codes
  const float* step;               // size of an entry's quantisation step
  const float* bias;               // <query centre, centred entry>
  float largest_norm;              // over the entries of the panel
  float largest_residual;
  std::uint32_t first_id;
  std::uint32_t valid;  // entries that exist; fewer than 48 in the last panel only
};

// Eight queries: codes in order [step of 4 coordinates][query][4], the test, and the candidates.
struct Group {
  const std::uint8_t* codes;
  float step[kGroup];
  float alpha[kGroup];      // multiple of the query centre that was taken away
  float threshold[kGroup];  // a score plus its bound must reach this
  float per_norm[kGroup];   // bound = per_norm * |entry| + per_residual * |entry's residual|
  float per_residual[kGroup];
  std::uint32_t count[kGroup];
  std::uint32_t* ids[kGroup];  // room for 16 more than any count
  float* scores[kGroup];
};

// |entry| and |entry - quantised entry|, both after centring and from above.
struct Bound {
  float norm;
  float residual;
};

// The candidates of one query, to be selected from.
struct Selection {
  std::uint32_t* ids;  // room for 16 more than `count`, as in `scores`, `lower` and `upper`
  float* scores;
  std::uint32_t count;  // at least k
  std::size_t k;
  const Bound* bounds;
  float per_norm;
  float per_residual;
  float slack;
  float* lower;
  float* upper;
};

enum class Content { numbers, zeros, not_finite };

// A query made ready for the integer pass. Norms are upper bounds.
struct Prepared {
  float step;
  float alpha;
  float norm;       // |query| as read
  float code_norm;  // |quantised query|
  float deviation;  // |rotated query - quantised query|, all rounding included
};

struct Rotation {
  std::size_t dim;
  std::size_t block;         // power of two; 0: no rotation
  const float* signs_first;  // block signs for the coordinates [0, block)
  const float* signs_last;   // for [dim - block, dim); null where block == dim
};

struct Kernel {
  const char* name;
  std::int32_t query_levels;  // codes lie in [-levels, levels]
  std::int32_t query_offset;  // added to make them unsigned
  void (*score)(const Panel&, Group&, std::size_t steps);
  // Read a query: x32 = row * 2^-exponent, rounded for float64, its magnitudes not extreme.
  Content (*load)(const void* row, Type type, std::size_t dim, float* x32, int* exponent);
  void (*widen)(const void* row, Type type, std::size_t dim, double* x64);
  // Codes are unsigned: query_offset is added.
  Prepared (*prepare)(const float* x32, bool rounded, const float* centre, float centre_square,
                      const Rotation&, float* work, std::uint8_t* codes);
  float (*dot32_f16)(const float*, const std::uint16_t*, std::size_t);
  float (*dot32_f32)(const float*, const float*, std::size_t);
  double (*dot64_f16)(const double*, const std::uint16_t*, std::size_t);
  double (*dot64_f32)(const double*, const float*, std::size_t);
  double (*dot64_f64)(const double*, const double*, std::size_t);
  std::size_t lanes;  // of float32; a dot product keeps four accumulators of this many
  // The k-th largest of `count` >= k numbers, or a little less where values crowd. Room for 16 more.
  float (*about_kth_largest)(float*, std::size_t count, std::size_t k);
  // Raise `threshold` to the k-th largest lower bound, drop what is below; returns the new count.
  std::uint32_t (*select)(const Selection&, float& threshold);
};

extern const Kernel avx512_kernel;
extern const Kernel avx2_kernel;

// The kernel called `name`, or the best one where it is empty; null where this machine has none.
const Kernel* find_kernel(const char* name);

// Roundings on the way of one product through dot32, at most.
inline double dot32_roundings(const Kernel& kernel, std::size_t dim) {
  return double(dim / (4 * kernel.lanes) + dim % kernel.lanes + 16);
}

}  // namespace bliss
