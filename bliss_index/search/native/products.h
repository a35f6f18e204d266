// Products of vectors and of blocks of them, in orders that fix every bit.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace bliss {
namespace {

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

// Products of kRows rows, `apart` from each other, with kUnits units of classes. Every product is a sum in the order of the
// coordinates, a lane per class: the same bits for any number of rows, and for any instruction set.
template <std::size_t kRows, std::size_t kUnits, class T>
void multiply_classes(const T* x, std::size_t apart, std::size_t dim, const T* texts,
                      std::size_t width, T* out, std::size_t stride) {
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
      const Vector value = spread_same(x[r * apart + i]);
#pragma GCC unroll 8
      for (std::size_t v = 0; v < vectors; ++v) sums[r][v] = fma(value, text[v], sums[r][v]);
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < vectors; ++v)
      std::memcpy(out + r * stride + v * lanes, &sums[r][v], sizeof(Vector));
}

template <std::size_t kUnits, class T>
void multiply_rows(const T* x, std::size_t rows, std::size_t apart, std::size_t dim, const T* texts,
                   std::size_t width, T* out, std::size_t stride) {
  constexpr std::size_t together = 6;
  std::size_t r = 0;
  for (; r + together <= rows; r += together)
    multiply_classes<together, kUnits>(x + r * apart, apart, dim, texts, width, out + r * stride,
                                       stride);
  for (; r < rows; ++r)
    multiply_classes<1, kUnits>(x + r * apart, apart, dim, texts, width, out + r * stride, stride);
}

// Texts lie in strips of up to kClassStrip classes, coordinate by coordinate.
template <class T>
void class_products(const T* x, std::size_t rows, std::size_t apart, std::size_t dim,
                    const T* texts, std::size_t classes, T* out) {
  for (std::size_t first = 0; first < classes; first += kClassStrip<T>) {
    const std::size_t width = std::min(kClassStrip<T>, classes - first);
    const T* const strip = texts + first * dim;
    if constexpr (kWholeStrips) {
      switch (width / kClassUnit<T>) {
        case 4: multiply_rows<4>(x, rows, apart, dim, strip, width, out + first, classes); break;
        case 3: multiply_rows<3>(x, rows, apart, dim, strip, width, out + first, classes); break;
        case 2: multiply_rows<2>(x, rows, apart, dim, strip, width, out + first, classes); break;
        default: multiply_rows<1>(x, rows, apart, dim, strip, width, out + first, classes);
      }
    } else {
      for (std::size_t at = 0; at < width; at += kClassUnit<T>)
        multiply_rows<1>(x, rows, apart, dim, strip + at, width, out + first + at, classes);
    }
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

}  // namespace
}  // namespace bliss
