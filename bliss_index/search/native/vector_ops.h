// Dot products and the preparation of a query, for the instruction set of the including file.
// Everything lies in an unnamed namespace: each file has its own copy.
#pragma once

#include <immintrin.h>

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
inline Doubles load_wide(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
inline Doubles load_wide(const std::uint16_t* p) {
  return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
#endif

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

template <class T>
bool load_typed(const T* row, std::size_t dim, double* x64, float* x32, int* exponent) {
  double largest = 0;
  bool finite = true;
  for (std::size_t i = 0; i < dim; ++i) x64[i] = double(widen(row[i]));
  for (std::size_t i = 0; i < dim; ++i) {
    const double magnitude = std::fabs(x64[i]);
    finite &= magnitude <= 0x1p1000;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (!finite) return false;
  *exponent = 0;
  if (largest > 0) std::frexp(largest, exponent);
  const double scale = std::ldexp(1.0, -*exponent);
  for (std::size_t i = 0; i < dim; ++i) x32[i] = float(x64[i] * scale);
  return true;
}

bool load_query(const void* row, Type type, std::size_t dim, double* x64, float* x32,
                int* exponent) {
  switch (type) {
    case Type::float16:
      return load_typed(static_cast<const std::uint16_t*>(row), dim, x64, x32, exponent);
    case Type::float32:
      return load_typed(static_cast<const float*>(row), dim, x64, x32, exponent);
    default:
      return load_typed(static_cast<const double*>(row), dim, x64, x32, exponent);
  }
}

// By halving the range: far cheaper than a selection for the hundred numbers or so there are.
float about_kth_largest(const float* numbers, std::size_t count, std::size_t k) {
  float low = numbers[0], high = numbers[0];
  for (std::size_t i = 0; i < count; ++i) {
    low = numbers[i] < low ? numbers[i] : low;
    high = numbers[i] > high ? numbers[i] : high;
  }
  for (int round = 0; round < 24; ++round) {
    const float middle = 0.5f * low + 0.5f * high;
    std::int32_t reaching = 0;
    for (std::size_t i = 0; i < count; ++i) reaching += numbers[i] >= middle;
    if (std::size_t(reaching) >= k) {
      low = middle;
      if (std::size_t(reaching) == k) break;
    } else {
      high = middle;
    }
  }
  float least = high;
  for (std::size_t i = 0; i < count; ++i) {
    const float reaching = numbers[i] >= low ? numbers[i] : high;
    least = reaching < least ? reaching : least;
  }
  return least;
}

// Random signs, then an orthonormal Walsh-Hadamard transform of `size` (a power of two) floats.
inline void transform(float* v, std::size_t size, const float* signs) {
  for (std::size_t i = 0; i < size; ++i) v[i] *= signs[i];
  for (std::size_t half = 1; half < size; half *= 2) {
    if (half >= kLanes) {
      for (std::size_t start = 0; start < size; start += 2 * half)
        for (std::size_t i = start; i < start + half; i += kLanes) {
          const Floats a = load(v + i), b = load(v + i + half);
          store(v + i, a + b);
          store(v + i + half, a - b);
        }
    } else {
      alignas(64) float sign[kLanes];
      alignas(64) std::int32_t partner[kLanes];
      for (std::size_t i = 0; i < kLanes; ++i) {
        sign[i] = (i & half) ? -1.0f : 1.0f;
        partner[i] = std::int32_t(i ^ half);
      }
      const Floats factor = load(sign);
      for (std::size_t i = 0; i < size; i += kLanes) {
        const Floats a = load(v + i);
#ifdef __AVX512F__
        const Floats b = _mm512_permutexvar_ps(_mm512_load_si512(partner), a);
#else
        const Floats b = _mm256_permutevar8x32_ps(
            a, _mm256_load_si256(reinterpret_cast<const __m256i*>(partner)));
#endif
        store(v + i, fma(a, factor, b));
      }
    }
  }
  const float scale = float(1.0 / std::sqrt(double(size)));
  for (std::size_t i = 0; i < size; ++i) v[i] *= scale;
}

inline float norm_above(double square) { return float(std::sqrt(square) * (1 + 1e-5)) + 0x1p-100f; }

// Sum of squares in float32; relative error below 1e-5 for any dimension that is accepted.
inline float square_sum(const float* v, std::size_t padded) {
  Floats a{}, b{};
  double sum = 0;
  std::size_t i = 0;
  for (; i < padded; i += kLanes) {
    const Floats x = load(v + i);
    a = fma(x, x, a);
    if ((i / kLanes) % 16 == 15) {
      sum += total(a);
      a = b;
    }
  }
  return float(sum + total(a));
}

template <int kLevels>
Prepared prepare_query(const float* x32, bool rounded, const float* centre, float centre_square,
                       const Rotation& rotation, float* work, std::int8_t* codes) {
  const std::size_t dim = rotation.dim, padded = (dim + 15) / 16 * 16;
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
  float largest = 0;
  for (std::size_t i = 0; i < padded; ++i) {
    const float magnitude = std::fabs(work[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  const float norm = norm_above(square_sum(work, padded));
  out.step = largest / float(kLevels);
  const float inverse = largest > 0x1p-100f ? float(kLevels) / largest : 0.0f;
  if (inverse == 0.0f) out.step = 0.0f;
  alignas(64) std::int32_t code[16];
  double code_square = 0;
  for (std::size_t i = 0; i < padded; i += 16) {
    std::int32_t sum = 0;
    for (std::size_t j = 0; j < 16; ++j) {
      const float scaled = work[i + j] * inverse;
      code[j] = std::int32_t(scaled + std::copysign(0.5f, scaled));
      code[j] = code[j] > kLevels ? kLevels : code[j] < -kLevels ? -kLevels : code[j];
      sum += code[j] * code[j];
      codes[i + j] = std::int8_t(code[j]);
      work[i + j] = std::fma(-out.step, float(code[j]), work[i + j]);
    }
    code_square += sum;
  }
  out.code_norm = norm_above(code_square * double(out.step) * double(out.step));
  const double input = rounded ? std::sqrt(double(square_sum(x32, padded))) * 1.001 : 0.0;
  const double rounding = double(kUnit32) * 1.01 * (roundings * norm + input) + 0x1p-100;
  out.deviation = float((norm_above(square_sum(work, padded)) + rounding) * (1 + 1e-6));
  return out;
}

}  // namespace
}  // namespace bliss
