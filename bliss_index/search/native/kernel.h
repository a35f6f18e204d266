// What a kernel offers: the functions that are compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ordering.h"

namespace bliss {

// Classes that are multiplied together: a unit of 64 bytes, and a strip as texts lie in memory.
template <class T>
constexpr std::size_t kClassUnit = 64 / sizeof(T);
template <class T>
constexpr std::size_t kClassStrip = 4 * kClassUnit<T>;
constexpr float kUnit32 = 0x1p-24f;  // unit roundoff of float32

enum class Type { float16, float32, float64 };

inline std::size_t type_bytes(Type type) {
  return type == Type::float16 ? 2 : type == Type::float32 ? 4 : 8;
}

// How codes lie in memory. Entries come in panels, queries in groups, coordinates in steps; inside a
// step of a panel, tiles of entries follow each other, a unit of coordinates of an entry stays together.
struct Layout {
  std::size_t panel;  // entries
  std::size_t tile;   // entries that lie side by side; divides `panel`
  std::size_t group;  // queries
  std::size_t depth;  // coordinates in a step, a multiple of the unit
  std::size_t unit = 4;

  std::size_t steps(std::size_t dim) const { return (dim + depth - 1) / depth; }
  // From the start of a panel, and of a group.
  std::size_t entry_offset(std::size_t lane, std::size_t i) const {
    return i / depth * (depth * panel) + lane / tile * (depth * tile) +
           i % depth / unit * (unit * tile) + lane % tile * unit + i % unit;
  }
  std::size_t query_offset(std::size_t lane, std::size_t i) const {
    return i / depth * (depth * group) + lane * depth + i % depth;
  }
};

// Neighbouring entries: their codes, and what turns integer dots into scores.
struct Panel {
  const std::int8_t* codes;
  const std::int8_t* next;         // codes of the panel that follows, to be fetched meanwhile
  const std::int32_t* correction;  // start value that undoes the offset of the query's codes
  const float* step;               // size of an entry's quantisation step
  const float* bias;               // <query centre, centred entry>
  const float* norm;               // |entry| after centring, from above
  const float* residual;           // |entry - quantised entry|, from above
  float largest_norm;              // over the entries of the panel
  float largest_residual;
  std::uint32_t first_id;
  std::uint32_t valid;  // entries that exist; fewer than the layout's in the last panel only
};

// The queries that a thread works on, a number each: their codes, the test, and the candidates.
struct Block {
  std::size_t count;  // a multiple of the layout's group
  const std::uint8_t* codes;
  const float* step;
  const float* alpha;         // multiple of the query centre that was taken away
  const float* threshold;     // a score plus its bound must reach this
  const float* per_norm;  // bound = per_norm * |entry| + per_residual * |entry's residual| + slack
  const float* per_residual;
  const float* slack;
  std::uint32_t* candidates;     // how many there are
  const std::uint32_t* trigger;  // how many are enough for a selection
  std::uint32_t* ids;            // `stride` for a query, room for a panel and 16 more than any count
  float* lower;                  // score less bound
  float* upper;                  // score plus bound
  std::size_t stride;
  std::uint32_t* due;  // queries whose candidates have reached their trigger
  std::uint32_t due_count;
};

// Count what was appended to a query; it is due once, when the count passes the trigger.
inline void set_candidates(Block& block, std::size_t q, std::uint32_t count) {
  const bool before = block.candidates[q] < block.trigger[q];
  block.due[block.due_count] = std::uint32_t(q);
  block.due_count += before && count >= block.trigger[q];
  block.candidates[q] = count;
}

// |entry| and |entry - quantised entry|, both after centring and from above.
struct Bound {
  float norm;
  float residual;
};

// The candidates of one query, to be selected from. There is room for 16 more than `count`.
struct Selection {
  std::uint32_t* ids;
  float* lower;
  float* upper;
  std::uint32_t count;  // at least k
  std::size_t k;
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

// An entry made ready for it. Norms are upper bounds.
struct PreparedEntry {
  float step;
  std::int32_t sum;    // of the codes
  float norm;          // |entry|
  float centred_norm;  // |entry - mean|
  float residual;      // |rotated centred entry - quantised entry|, all rounding included
};

struct Rotation {
  std::size_t dim;
  std::size_t block;         // power of two; 0: no rotation
  const float* signs_first;  // block signs for the coordinates [0, block)
  const float* signs_last;   // for [dim - block, dim); null where block == dim
};

// Totals of all classes for one image, less precise than they are returned: base - product * inverse
// + weight * sum, within norm * per_norm + slack + 2^-48 |weight * sum|. Room for whole units of float.
struct Estimates {
  std::size_t classes;
  const float* products;   // with the texts
  const double* sums;      // over the entries
  const double* base;      // mu / sigma
  const double* inverse;   // 1 / sigma
  const double* per_norm;  // the product's error, and the roundings of all steps, in units of sigma
  const double* slack;
  double norm;  // of the image, from above
  double weight;
  double* lower;  // written: room for the lower ends
};

struct Kernel {
  const char* name;
  Layout layout;
  std::size_t block;          // queries that a thread should work on at a time
  std::int32_t query_levels;  // codes lie in [-levels, levels]
  std::int32_t query_offset;  // added to make them unsigned
  // Every query against a panel. Between `enter` and `leave`, on the same thread.
  void (*score)(const Panel&, Block&, std::size_t steps);
  void (*enter)();
  void (*leave)();
  // Read a query: *x = row * 2^-exponent, rounded for float64, its magnitudes not extreme; either
  // the row itself or in `room`, which holds zeros from `dim` on. Reads a multiple of 16 where dim is.
  Content (*load)(const void* row, Type type, std::size_t dim, float* room, int* exponent,
                  const float** x);
  void (*widen)(const void* row, Type type, std::size_t dim, double* x64);
  // Codes have query_offset added.
  Prepared (*prepare)(const float* x32, bool rounded, const float* centre, float centre_square,
                      const Rotation&, float* work, std::uint8_t* codes);
  // Raise `largest` to the largest magnitude of rows of finite numbers, and add them to `sums`.
  void (*measure)(const void* rows, Type type, std::size_t count, std::size_t dim, double* largest,
                  double* sums);
  // Quantise row * scale - mean. Codes are signed, and zero from dim on; `work` has room for padded.
  PreparedEntry (*prepare_entry)(const void* row, Type type, double scale, const double* mean,
                                 const Rotation&, float* work, std::int8_t* codes);
  float (*dot32_f16)(const float*, const std::uint16_t*, std::size_t);
  float (*dot32_f32)(const float*, const float*, std::size_t);
  double (*dot64_f16)(const double*, const std::uint16_t*, std::size_t);
  double (*dot64_f32)(const double*, const float*, std::size_t);
  double (*dot64_f64)(const double*, const double*, std::size_t);
  // The first `dim` coordinates of rows, `apart` from each other, with class texts, a multiple of
  // kClassUnit of them: (rows x classes).
  void (*class_products64)(const double* x, std::size_t rows, std::size_t apart, std::size_t dim,
                           const double* texts, std::size_t classes, double* out);
  void (*class_products32)(const float* x, std::size_t rows, std::size_t apart, std::size_t dim,
                           const float* texts, std::size_t classes, float* out);
  // Products of `count` pairs of vectors, with the bits of class_products64.
  void (*pair_products)(const double* const* x, const double* const* texts, std::size_t count,
                        std::size_t dim, double* out);
  // The classes, in order, whose totals can be the smallest; returns how many there are.
  std::size_t (*smallest)(const Estimates&, std::uint32_t* out);
  std::size_t lanes;  // of float32; a dot product keeps four accumulators of this many
  // Raise `threshold` to the k-th largest lower end or little less, drop what ends below it, and
  // return the new count.
  std::uint32_t (*select)(const Selection&, float& threshold);
  Rank rank;
};

#ifdef __aarch64__
extern const Kernel neon_i8mm_kernel;
extern const Kernel neon_dotprod_kernel;
#else
#ifdef BLISS_HAS_AMX
extern const Kernel amx_kernel;
bool amx_is_usable();  // the processor has it, and the system lets this process use it
#endif
extern const Kernel avx512_kernel;
extern const Kernel avx2_kernel;
#endif

// Those that this machine can run, the fastest first.
std::vector<const Kernel*> usable_kernels();

// The kernel called `name`, or the best one where it is empty; null where this machine has none.
const Kernel* find_kernel(const char* name);

// Roundings on the way of one product through dot32, at most.
inline double dot32_roundings(const Kernel& kernel, std::size_t dim) {
  return double(dim / (4 * kernel.lanes) + dim % kernel.lanes + 16);
}

}  // namespace bliss
