// Dot products and the preparation of a query, for the instruction set of the including file.
// Everything lies in an unnamed namespace: each file has its own copy.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernel.h"

namespace bliss {
namespace {

#ifdef __AVX512F__
constexpr std::size_t kLanes = 16;
using Floats = __m512;
using Doubles = __m512d;
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats spread(float v) { return _mm512_set1_ps(v); }
inline Doubles load_wide(const double* p) { return _mm512_loadu_pd(p); }
inline Doubles spread_wide(double v) { return _mm512_set1_pd(v); }
inline Doubles load_wide(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
inline Doubles load_wide(const std::uint16_t* p) {
  return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
#else
constexpr std::size_t kLanes = 8;
using Floats = __m256;
using Doubles = __m256d;
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const std::uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats spread(float v) { return _mm256_set1_ps(v); }
inline Doubles load_wide(const double* p) { return _mm256_loadu_pd(p); }
inline Doubles spread_wide(double v) { return _mm256_set1_pd(v); }
inline Doubles load_wide(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline Doubles load_wide(const std::uint16_t* p) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
#endif

#ifdef __AVX512F__
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline unsigned reaching_mask(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
// Move the lanes in `mask` of candidates i.. to position `kept`.. ; returns the position after them.
inline std::uint32_t keep_lanes(const Selection& s, std::uint32_t i, std::uint32_t kept,
                                unsigned mask) {
  const __m512i ids = _mm512_maskz_compress_epi32(__mmask16(mask), _mm512_loadu_si512(s.ids + i));
  const Floats lower = _mm512_maskz_compress_ps(__mmask16(mask), load(s.lower + i));
  const Floats upper = _mm512_maskz_compress_ps(__mmask16(mask), load(s.upper + i));
  _mm512_storeu_si512(s.ids + kept, ids);
  store(s.lower + kept, lower);
  store(s.upper + kept, upper);
  return kept + std::uint32_t(__builtin_popcount(mask));
}
template <int kOffset>
Floats store_codes(std::uint8_t* out, Floats scaled) {
  const __m512i code = _mm512_cvtps_epi32(scaled);
  const __m512i shifted = _mm512_add_epi32(code, _mm512_set1_epi32(kOffset));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(shifted));
  return _mm512_cvtepi32_ps(code);
}
#else
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline unsigned reaching_mask(Floats a, Floats b) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
inline std::uint32_t keep_lanes(const Selection& s, std::uint32_t i, std::uint32_t kept,
                                unsigned mask) {
  for (; mask; mask &= mask - 1, ++kept) {
    const std::uint32_t from = i + std::uint32_t(__builtin_ctz(mask));
    s.ids[kept] = s.ids[from];
    s.lower[kept] = s.lower[from];
    s.upper[kept] = s.upper[from];
  }
  return kept;
}
template <int kOffset>
Floats store_codes(std::uint8_t* out, Floats scaled) {
  const __m256i code = _mm256_cvtps_epi32(scaled);
  alignas(32) std::int32_t lane[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), code);
  for (std::size_t i = 0; i < kLanes; ++i) out[i] = std::uint8_t(lane[i] + kOffset);
  return _mm256_cvtepi32_ps(code);
}
#endif

inline void nothing() {}

// The next panel lies elsewhere: a part of it is fetched with every group of queries.
class Fetch {
 public:
  Fetch(const Panel& panel, std::size_t bytes, std::size_t parts)
      : at_(reinterpret_cast<const char*>(panel.next)), end_(at_ + bytes),
        size_((bytes / parts + 63) / 64 * 64) {}
  void part() {
    const char* const stop = std::size_t(end_ - at_) < size_ ? end_ : at_ + size_;
    for (; at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char* at_;
  const char* end_;
  std::size_t size_;
};

inline float largest_lane(Floats v) {
  alignas(64) float lane[kLanes];
  store(lane, v);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i)
      lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

inline float widen(float v) { return v; }
inline float widen(std::uint16_t v) { return _cvtsh_ss(v); }
inline double widen(double v) { return v; }

inline float total(Floats v) {
  alignas(64) float lane[kLanes];
  store(lane, v);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

inline double total(Doubles v) {
  double lane[kLanes / 2];
  std::memcpy(lane, &v, sizeof v);
  for (std::size_t half = kLanes / 4; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

template <class T>
float dot32(const float* x, const T* t, std::size_t dim) {
  Floats a{}, b{}, c{}, d{};
  std::size_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
    a = fma(load(x + i), load(t + i), a);
    b = fma(load(x + i + kLanes), load(t + i + kLanes), b);
    c = fma(load(x + i + 2 * kLanes), load(t + i + 2 * kLanes), c);
    d = fma(load(x + i + 3 * kLanes), load(t + i + 3 * kLanes), d);
  }
  for (; i + kLanes <= dim; i += kLanes) a = fma(load(x + i), load(t + i), a);
  float tail = 0;
  for (; i < dim; ++i) tail += x[i] * float(widen(t[i]));
  return total((a + b) + (c + d)) + tail;
}

template <class T>
double dot64(const double* x, const T* t, std::size_t dim) {
  constexpr std::size_t lanes = kLanes / 2;
  Doubles a{}, b{}, c{}, d{};
  std::size_t i = 0;
  for (; i + 4 * lanes <= dim; i += 4 * lanes) {
    a = fma(load_wide(x + i), load_wide(t + i), a);
    b = fma(load_wide(x + i + lanes), load_wide(t + i + lanes), b);
    c = fma(load_wide(x + i + 2 * lanes), load_wide(t + i + 2 * lanes), c);
    d = fma(load_wide(x + i + 3 * lanes), load_wide(t + i + 3 * lanes), d);
  }
  double tail = 0;
  for (; i < dim; ++i) tail += x[i] * double(widen(t[i]));
  return total((a + b) + (c + d)) + tail;
}

inline Floats load_same(const float* p) { return load(p); }
inline Doubles load_same(const double* p) { return load_wide(p); }
inline Floats spread_same(float v) { return spread(v); }
inline Doubles spread_same(double v) { return spread_wide(v); }

// Products of kRows rows with kUnits units of classes. Every product is a sum in the order of the
// coordinates, a lane per class: the same bits for any number of rows, and for any instruction set.
template <std::size_t kRows, std::size_t kUnits, class T>
void multiply_classes(const T* x, std::size_t dim, const T* texts, std::size_t width, T* out,
                      std::size_t stride) {
  using Vector = decltype(load_same(texts));
  constexpr std::size_t lanes = sizeof(Vector) / sizeof(T);
  constexpr std::size_t vectors = kUnits * kClassUnit<T> / lanes;
  Vector sums[kRows][vectors];
  for (auto& row : sums)
    for (Vector& sum : row) sum = Vector{};
  for (std::size_t i = 0; i < dim; ++i, texts += width) {
    Vector text[vectors];
#pragma GCC unroll 8
    for (std::size_t v = 0; v < vectors; ++v) text[v] = load_same(texts + v * lanes);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector value = spread_same(x[r * dim + i]);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < vectors; ++v) sums[r][v] = fma(value, text[v], sums[r][v]);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < vectors; ++v)
      std::memcpy(out + r * stride + v * lanes, &sums[r][v], sizeof(Vector));
}

template <std::size_t kUnits, class T>
void multiply_rows(const T* x, std::size_t rows, std::size_t dim, const T* texts, std::size_t width,
                   T* out, std::size_t stride) {
  constexpr std::size_t together = 6;
  std::size_t r = 0;
  for (; r + together <= rows; r += together)
    multiply_classes<together, kUnits>(x + r * dim, dim, texts, width, out + r * stride, stride);
  for (; r < rows; ++r)
    multiply_classes<1, kUnits>(x + r * dim, dim, texts, width, out + r * stride, stride);
}

// Texts lie in strips of up to kClassStrip classes, coordinate by coordinate.
template <class T>
void class_products(const T* x, std::size_t rows, std::size_t dim, const T* texts,
                    std::size_t classes, T* out) {
  for (std::size_t first = 0; first < classes; first += kClassStrip<T>) {
    const std::size_t width = std::min(kClassStrip<T>, classes - first);
    const T* const strip = texts + first * dim;
#ifdef __AVX512F__
    switch (width / kClassUnit<T>) {
      case 4: multiply_rows<4>(x, rows, dim, strip, width, out + first, classes); break;
      case 3: multiply_rows<3>(x, rows, dim, strip, width, out + first, classes); break;
      case 2: multiply_rows<2>(x, rows, dim, strip, width, out + first, classes); break;
      default: multiply_rows<1>(x, rows, dim, strip, width, out + first, classes);
    }
#else
    for (std::size_t at = 0; at < width; at += kClassUnit<T>)
      multiply_rows<1>(x, rows, dim, strip + at, width, out + first + at, classes);
#endif
  }
}

// Sums in the order of the coordinates, several at a time: each step of one waits for the last.
template <std::size_t kTogether>
void multiply_pairs(const double* const* x, const double* const* texts, std::size_t dim,
                    double* out) {
  double sums[kTogether] = {};
  for (std::size_t i = 0; i < dim; ++i)
#pragma GCC unroll 8
    for (std::size_t p = 0; p < kTogether; ++p) sums[p] = std::fma(x[p][i], texts[p][i], sums[p]);
  std::memcpy(out, sums, sizeof sums);
}

void pair_products(const double* const* x, const double* const* texts, std::size_t count,
                   std::size_t dim, double* out) {
  std::size_t p = 0;
  for (; p + 8 <= count; p += 8) multiply_pairs<8>(x + p, texts + p, dim, out + p);
  for (; p < count; ++p) multiply_pairs<1>(x + p, texts + p, dim, out + p);
}

#ifdef __AVX512F__
inline Doubles magnitude(Doubles v) { return _mm512_abs_pd(v); }
// The second operand where one is NaN.
inline Doubles smaller(Doubles a, Doubles b) { return _mm512_min_pd(a, b); }
inline unsigned not_above_mask(Doubles a, Doubles b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_NGT_UQ);
}
#else
inline Doubles magnitude(Doubles v) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), v); }
inline Doubles smaller(Doubles a, Doubles b) { return _mm256_min_pd(a, b); }
inline unsigned not_above_mask(Doubles a, Doubles b) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGT_UQ)));
}
#endif

// A class is left out only where its lower end is above another's upper end. An end that is not a
// number leaves nothing out.
std::size_t smallest(const Estimates& e, std::uint32_t* out) {
  constexpr std::size_t lanes = kLanes / 2;
  const Doubles norm = spread_wide(e.norm), weight = spread_wide(e.weight);
  const Doubles share = spread_wide(0x1p-48);
  Doubles least = spread_wide(INFINITY);
  for (std::size_t c = 0; c < e.classes; c += lanes) {
    const Doubles external = weight * load_wide(e.sums + c);
    const Doubles internal = load_wide(e.base + c) - load_wide(e.products + c) * load_wide(e.inverse + c);
    const Doubles total = internal + external;
    const Doubles error = fma(norm, load_wide(e.per_norm + c),
                              fma(share, magnitude(external), load_wide(e.slack + c)));
    const Doubles lower = total - error;
    std::memcpy(e.lower + c, &lower, sizeof lower);
    least = smaller(total + error, least);
  }
  double lane[lanes], bound = INFINITY;
  std::memcpy(lane, &least, sizeof least);
  for (const double value : lane) bound = value < bound ? value : bound;
  std::size_t count = 0;
  for (std::size_t c = 0; c < e.classes; c += lanes)
    for (unsigned mask = not_above_mask(load_wide(e.lower + c), spread_wide(bound)); mask; mask &= mask - 1) {
      const std::size_t at = c + std::size_t(__builtin_ctz(mask));
      if (at < e.classes) out[count++] = std::uint32_t(at);
    }
  return count;
}

inline void store_wide(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }

template <class T>
void widen_typed(const T* row, std::size_t dim, double* x64) {
  constexpr std::size_t lanes = kLanes / 2;
  std::size_t i = 0;
  for (; i + lanes <= dim; i += lanes) store_wide(x64 + i, load_wide(row + i));
  for (; i < dim; ++i) x64[i] = double(widen(row[i]));
}

void widen_query(const void* row, Type type, std::size_t dim, double* x64) {
  if (type == Type::float16) widen_typed(static_cast<const std::uint16_t*>(row), dim, x64);
  else if (type == Type::float32) widen_typed(static_cast<const float*>(row), dim, x64);
  else widen_typed(static_cast<const double*>(row), dim, x64);
}

Content load_scaled(const void* row, Type type, std::size_t dim, float* x32, int* exponent) {
  double largest = 0;
  bool finite = true;
  const auto value = [&](std::size_t i) {
    return type == Type::float32 ? double(static_cast<const float*>(row)[i])
                                 : static_cast<const double*>(row)[i];
  };
  for (std::size_t i = 0; i < dim; ++i) {
    const double magnitude = std::fabs(value(i));
    finite &= magnitude <= 0x1p1000;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (!finite) return Content::not_finite;
  *exponent = 0;
  if (largest > 0) std::frexp(largest, exponent);
  const double scale = std::ldexp(1.0, -*exponent);
  for (std::size_t i = 0; i < dim; ++i) x32[i] = float(value(i) * scale);
  return largest > 0 ? Content::numbers : Content::zeros;
}

Content load_query(const void* row, Type type, std::size_t dim, float* room, int* exponent,
                   const float** x) {
  *x = room;
  if (type == Type::float64) return load_scaled(row, type, dim, room, exponent);
  if (type == Type::float32) {
    if (dim % 16 == 0) *x = static_cast<const float*>(row);
    else std::memcpy(room, row, dim * sizeof(float));
  } else {
    const std::uint16_t* half = static_cast<const std::uint16_t*>(row);
    std::size_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) store(room + i, load(half + i));
    for (; i < dim; ++i) room[i] = widen(half[i]);
  }
  // Bits of magnitudes order as the magnitudes do, NaN and infinity on top.
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < dim; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, *x + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  *exponent = 0;
  if (largest >= 0x7f800000u) return Content::not_finite;
  if (largest == 0) return Content::zeros;
  float top;
  std::memcpy(&top, &largest, sizeof top);
  if (top < 0x1p-40f || top > 0x1p40f) {
    // Only float32 can be this extreme.
    *x = room;
    return load_scaled(row, type, dim, room, exponent);
  }
  return Content::numbers;
}

inline std::size_t count_reaching(const float* numbers, std::size_t padded, float least) {
  std::size_t reaching = 0;
  for (std::size_t i = 0; i < padded; i += kLanes)
    reaching += std::size_t(__builtin_popcount(reaching_mask(load(numbers + i), spread(least))));
  return reaching;
}

// The k-th largest of `count` >= k numbers, or a little less. By halving the range: far cheaper than
// a selection for the hundred numbers or so there are.
float about_kth_largest(float* numbers, std::size_t count, std::size_t k, float least) {
  const std::size_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (std::size_t i = count; i < padded; ++i) numbers[i] = numbers[0];
  Floats lows = load(numbers), highs = lows;
  for (std::size_t i = kLanes; i < padded; i += kLanes) {
    lows = smaller(lows, load(numbers + i));
    highs = larger(highs, load(numbers + i));
  }
  float low = -largest_lane(-lows), high = largest_lane(highs);
  for (std::size_t i = count; i < padded; ++i) numbers[i] = -INFINITY;
  if (least > low) low = least;  // k numbers reach it
  const std::size_t enough = k + k / 8;
  for (int round = 0; round < 24; ++round) {
    const float middle = 0.5f * low + 0.5f * high;
    const std::size_t reaching = count_reaching(numbers, padded, middle);
    if (reaching >= k) {
      low = middle;
      if (reaching <= enough) break;
    } else {
      high = middle;
    }
  }
  return low;
}

std::uint32_t select(const Selection& s, float& threshold) {
  for (std::uint32_t i = s.count; i % kLanes; ++i) s.upper[i] = -INFINITY;
  threshold = about_kth_largest(s.lower, s.count, s.k, threshold);
  std::uint32_t kept = 0;
  for (std::uint32_t i = 0; i < s.count; i += kLanes)
    kept = keep_lanes(s, i, kept, reaching_mask(load(s.upper + i), spread(threshold)));
  return kept;
}

void rank(const double* numbers, std::size_t count, std::uint32_t* larger) {
  constexpr std::size_t lanes = kLanes / 2;
  for (std::size_t j = 0; j < count; j += lanes) {
    const Doubles own = load_wide(numbers + j);
#ifdef __AVX512F__
    __m512i counts = _mm512_setzero_si512();
    for (std::size_t i = 0; i < count; ++i) {
      const __mmask8 more = _mm512_cmp_pd_mask(spread_wide(numbers[i]), own, _CMP_GT_OQ);
      counts = _mm512_mask_add_epi64(counts, more, counts, _mm512_set1_epi64(1));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(larger + j), _mm512_cvtepi64_epi32(counts));
#else
    __m256i counts = _mm256_setzero_si256();
    for (std::size_t i = 0; i < count; ++i) {
      const Doubles more = _mm256_cmp_pd(spread_wide(numbers[i]), own, _CMP_GT_OQ);
      counts = _mm256_sub_epi64(counts, _mm256_castpd_si256(more));
    }
    alignas(32) std::int64_t lane[lanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lane), counts);
    for (std::size_t l = 0; l < lanes; ++l) larger[j + l] = std::uint32_t(lane[l]);
#endif
  }
}

// The stages of a Walsh-Hadamard transform that stay inside a vector.
inline Floats transform_lanes(Floats v) {
#ifdef __AVX512F__
  const auto stage = [](Floats a, Floats b, __mmask16 minus) {
    return _mm512_mask_sub_ps(_mm512_add_ps(a, b), minus, b, a);
  };
  v = stage(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
  v = stage(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
  v = stage(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
  return stage(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
#else
  const auto stage = [](Floats a, Floats b, int minus) {
    const Floats sum = _mm256_add_ps(a, b), difference = _mm256_sub_ps(b, a);
    return minus == 1   ? _mm256_blend_ps(sum, difference, 0xaa)
           : minus == 2 ? _mm256_blend_ps(sum, difference, 0xcc)
                        : _mm256_blend_ps(sum, difference, 0xf0);
  };
  v = stage(v, _mm256_permute_ps(v, 0xb1), 1);
  v = stage(v, _mm256_permute_ps(v, 0x4e), 2);
  return stage(v, _mm256_permute2f128_ps(v, v, 1), 4);
#endif
}

// Random signs, then an orthonormal Walsh-Hadamard transform of `size` (a power of two) floats.
inline void transform(float* v, std::size_t size, const float* signs) {
  const Floats scale = spread(float(1.0 / std::sqrt(double(size))));
  for (std::size_t i = 0; i < size; i += kLanes)
    store(v + i, transform_lanes(load(v + i) * load(signs + i) * scale));
  std::size_t half = kLanes;
  for (; 4 * half <= size; half *= 4)  // two stages in one pass
    for (std::size_t start = 0; start < size; start += 4 * half)
      for (std::size_t i = start; i < start + half; i += kLanes) {
        const Floats a = load(v + i), b = load(v + i + half);
        const Floats c = load(v + i + 2 * half), d = load(v + i + 3 * half);
        const Floats ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
        store(v + i, ab + cd);
        store(v + i + half, a_b + c_d);
        store(v + i + 2 * half, ab - cd);
        store(v + i + 3 * half, a_b - c_d);
      }
  if (half < size)
    for (std::size_t i = 0; i < half; i += kLanes) {
      const Floats a = load(v + i), b = load(v + i + half);
      store(v + i, a + b);
      store(v + i + half, a - b);
    }
}

template <int kLevels, int kOffset>
Prepared prepare_query(const float* x32, bool rounded, const float* centre, float centre_square,
                       const Rotation& rotation, float* work, std::uint8_t* codes) {
  const std::size_t dim = rotation.dim, padded = (dim + 15) / 16 * 16;
  // Sums of squares in float32 are right to within the roundings of one lane and the rest.
  const double margin = 1 + 1e-5 + double(padded / kLanes) * double(kUnit32);
  const auto norm_above = [margin](Floats squares) {
    return float(std::sqrt(double(total(squares))) * margin) + 0x1p-60f;
  };
  Prepared out{};
  if (centre_square > 0) out.alpha = dot32(x32, centre, dim) / centre_square;
  const float minus = -out.alpha;
  for (std::size_t i = 0; i < dim; ++i) work[i] = std::fma(minus, centre[i], x32[i]);
  for (std::size_t i = dim; i < padded; ++i) work[i] = 0;
  double roundings = 3;
  if (rotation.block) {
    transform(work, rotation.block, rotation.signs_first);
    if (rotation.signs_last)
      transform(work + (dim - rotation.block), rotation.block, rotation.signs_last);
    int stages = 0;
    while ((std::size_t(1) << stages) < rotation.block) ++stages;
    roundings += (stages + 3) * (rotation.signs_last ? 2 : 1);
  }
  Floats largest{}, input{};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    const Floats v = load(work + i), x = load(x32 + i);
    largest = larger(largest, larger(v, -v));
    input = fma(x, x, input);
  }
  out.norm = norm_above(input);
  const float top = largest_lane(largest);
  const float inverse = top > 0x1p-100f ? float(kLevels) / top : 0.0f;
  out.step = inverse > 0 ? top / float(kLevels) : 0.0f;
  Floats squares{}, code_squares{}, left_squares{};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    const Floats v = load(work + i);
    const Floats code = store_codes<kOffset>(codes + i, v * spread(inverse));
    const Floats left = fma(spread(-out.step), code, v);
    squares = fma(v, v, squares);
    code_squares = fma(code, code, code_squares);
    left_squares = fma(left, left, left_squares);
  }
  out.code_norm = float(double(norm_above(code_squares)) * out.step * (1 + 1e-6)) + 0x1p-60f;
  const double rounding =
      double(kUnit32) * 1.01 * (roundings * norm_above(squares) + (rounded ? out.norm : 0.0f));
  out.deviation = float((norm_above(left_squares) + rounding) * (1 + 1e-6));
  return out;
}

}  // namespace
}  // namespace bliss
