// A query made ready: read, widened, centred, rotated, quantised, with bounds of what that costs.
#pragma once

#include "products.h"

namespace bliss {
namespace {

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
