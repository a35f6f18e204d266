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

// Rotate v, whose rest up to a whole vector is zero; returns how many roundings of a coordinate that
// takes, at most, in units of the vector's norm.
inline double rotate(float* v, const Rotation& rotation) {
  if (!rotation.block) return 0;
  transform(v, rotation.block, rotation.signs_first);
  if (rotation.signs_last)
    transform(v + (rotation.dim - rotation.block), rotation.block, rotation.signs_last);
  int stages = 0;
  while ((std::size_t(1) << stages) < rotation.block) ++stages;
  return (stages + 3) * (rotation.signs_last ? 2 : 1);
}

// What a vector becomes. Norms are upper bounds.
struct Quantised {
  float step;
  float norm;       // of the vector
  float code_norm;  // of the codes, not times the step
  float residual;   // |vector - codes * step|
};

// The square root of a sum of `padded` squares, from above.
inline float norm_above(Floats squares, std::size_t padded) {
  // Sums of squares in float32 are right to within the roundings of one lane and the rest.
  const double margin = 1 + 1e-5 + double(padded / kLanes) * double(kUnit32);
  return float(std::sqrt(double(total(squares))) * margin) + 0x1p-60f;
}

template <int kLevels, int kOffset>
Quantised quantise(const float* v, std::size_t padded, std::uint8_t* codes) {
  Floats largest{};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    const Floats value = load(v + i);
    largest = larger(largest, larger(value, -value));
  }
  const float top = largest_lane(largest);
  const float inverse = top > 0x1p-100f ? float(kLevels) / top : 0.0f;
  Quantised out{};
  out.step = inverse > 0 ? top / float(kLevels) : 0.0f;
  Floats squares{}, code_squares{}, left_squares{};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    const Floats value = load(v + i);
    const Floats code = store_codes<kOffset>(codes + i, value * spread(inverse));
    const Floats left = fma(spread(-out.step), code, value);
    squares = fma(value, value, squares);
    code_squares = fma(code, code, code_squares);
    left_squares = fma(left, left, left_squares);
  }
  out.norm = norm_above(squares, padded);
  out.code_norm = norm_above(code_squares, padded);
  out.residual = norm_above(left_squares, padded);
  return out;
}

template <int kLevels, int kOffset>
Prepared prepare_query(const float* x32, bool rounded, const float* centre, float centre_square,
                       const Rotation& rotation, float* work, std::uint8_t* codes) {
  const std::size_t dim = rotation.dim, padded = (dim + 15) / 16 * 16;
  Prepared out{};
  if (centre_square > 0) out.alpha = dot32(x32, centre, dim) / centre_square;
  const float minus = -out.alpha;
  for (std::size_t i = 0; i < dim; ++i) work[i] = std::fma(minus, centre[i], x32[i]);
  for (std::size_t i = dim; i < padded; ++i) work[i] = 0;
  const double roundings = 3 + rotate(work, rotation);
  Floats input{};
  for (std::size_t i = 0; i < padded; i += kLanes) input = fma(load(x32 + i), load(x32 + i), input);
  out.norm = norm_above(input, padded);
  const Quantised codes_of = quantise<kLevels, kOffset>(work, padded, codes);
  out.step = codes_of.step;
  out.code_norm = float(double(codes_of.code_norm) * out.step * (1 + 1e-6)) + 0x1p-60f;
  const double rounding =
      double(kUnit32) * 1.01 * (roundings * codes_of.norm + (rounded ? out.norm : 0.0f));
  out.deviation = float((codes_of.residual + rounding) * (1 + 1e-6));
  return out;
}

template <class T>
void measure_typed(const T* row, std::size_t count, std::size_t dim, double* largest, double* sums) {
  constexpr std::size_t lanes = kLanes / 2;
  Doubles top = spread_wide(*largest);
  for (std::size_t r = 0; r < count; ++r, row += dim) {
    std::size_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
      const Doubles value = load_wide(row + i);
      top = larger(top, magnitude(value));
      store_wide(sums + i, load_wide(sums + i) + value);
    }
    for (; i < dim; ++i) {
      const double value = double(widen(row[i]));
      *largest = std::max(*largest, std::fabs(value));
      sums[i] += value;
    }
  }
  double lane[lanes];
  store_wide(lane, top);
  for (const double value : lane) *largest = std::max(*largest, value);
}

void measure(const void* rows, Type type, std::size_t count, std::size_t dim, double* largest,
             double* sums) {
  if (type == Type::float16) measure_typed(static_cast<const std::uint16_t*>(rows), count, dim, largest, sums);
  else if (type == Type::float32) measure_typed(static_cast<const float*>(rows), count, dim, largest, sums);
  else measure_typed(static_cast<const double*>(rows), count, dim, largest, sums);
}

// Write row * scale - mean, rounded once; returns the square of |row * scale|.
template <class T>
double centre_entry(const T* row, std::size_t dim, double scale, const double* mean, float* out) {
  constexpr std::size_t lanes = kLanes / 2;
  Doubles squares{};
  std::size_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    const Doubles value = load_wide(row + i) * spread_wide(scale);
    squares = fma(value, value, squares);
    store_narrow(out + i, value - load_wide(mean + i));
  }
  double rest = 0;
  for (; i < dim; ++i) {
    const double value = double(widen(row[i])) * scale;
    rest += value * value;
    out[i] = float(value - mean[i]);
  }
  return total(squares) + rest;
}

PreparedEntry prepare_entry(const void* row, Type type, double scale, const double* mean,
                            const Rotation& rotation, float* work, std::int8_t* codes) {
  const std::size_t dim = rotation.dim, padded = (dim + 15) / 16 * 16;
  const double square =
      type == Type::float16   ? centre_entry(static_cast<const std::uint16_t*>(row), dim, scale, mean, work)
      : type == Type::float32 ? centre_entry(static_cast<const float*>(row), dim, scale, mean, work)
                              : centre_entry(static_cast<const double*>(row), dim, scale, mean, work);
  for (std::size_t i = dim; i < padded; ++i) work[i] = 0;
  const double roundings = 3 + rotate(work, rotation);
  const Quantised codes_of =
      quantise<127, 0>(work, padded, reinterpret_cast<std::uint8_t*>(codes));
  PreparedEntry out{};
  out.step = codes_of.step;
  for (std::size_t i = 0; i < dim; ++i) out.sum += codes[i];
  // Sums in float64, and differences from a mean that float64 holds to about 2^-50.
  const double norm = std::sqrt(square) * (1 + 1e-6);
  out.norm = float(norm) + 0x1p-100f;
  const double rounding = double(kUnit32) * 1.01 * roundings * codes_of.norm + 0x1p-45 * (norm + 1);
  out.centred_norm = float((codes_of.norm + rounding) * (1 + 1e-6));
  out.residual = float((codes_of.residual + rounding) * (1 + 1e-6));
  return out;
}

}  // namespace
}  // namespace bliss
