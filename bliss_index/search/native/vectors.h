// Vectors of the instruction set of the including file: all that differs between the sets is here.
// Everything lies in an unnamed namespace: each file has its own copy.
#pragma once

#ifdef __aarch64__
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

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
constexpr bool kWholeStrips = true;  // registers hold the sums of a whole strip of classes
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
inline Doubles magnitude(Doubles v) { return _mm512_abs_pd(v); }
inline Doubles larger(Doubles a, Doubles b) { return _mm512_max_pd(a, b); }
inline void store_narrow(float* p, Doubles v) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
// The second operand where one is NaN.
inline Doubles smaller(Doubles a, Doubles b) { return _mm512_min_pd(a, b); }
inline unsigned not_above_mask(Doubles a, Doubles b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_NGT_UQ);
}
// The stages of a Walsh-Hadamard transform that stay inside a vector.
inline Floats transform_lanes(Floats v) {
  const auto stage = [](Floats a, Floats b, __mmask16 minus) {
    return _mm512_mask_sub_ps(_mm512_add_ps(a, b), minus, b, a);
  };
  v = stage(v, _mm512_permute_ps(v, 0xb1), 0xaaaa);
  v = stage(v, _mm512_permute_ps(v, 0x4e), 0xcccc);
  v = stage(v, _mm512_shuffle_f32x4(v, v, 0xb1), 0xf0f0);
  return stage(v, _mm512_shuffle_f32x4(v, v, 0x4e), 0xff00);
}
// How many of the numbers are larger than each of `own`.
inline void count_larger(const double* numbers, std::size_t count, Doubles own, std::uint32_t* out) {
  __m512i counts = _mm512_setzero_si512();
  for (std::size_t i = 0; i < count; ++i) {
    const __mmask8 more = _mm512_cmp_pd_mask(spread_wide(numbers[i]), own, _CMP_GT_OQ);
    counts = _mm512_mask_add_epi64(counts, more, counts, _mm512_set1_epi64(1));
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi64_epi32(counts));
}
#elif defined(__aarch64__)
constexpr std::size_t kLanes = 4;
using Floats = float32x4_t;
using Doubles = float64x2_t;
inline Floats load(const float* p) { return vld1q_f32(p); }
inline Floats load(const std::uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline void store(float* p, Floats v) { vst1q_f32(p, v); }
inline Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline Floats spread(float v) { return vdupq_n_f32(v); }
inline Doubles load_wide(const double* p) { return vld1q_f64(p); }
inline Doubles spread_wide(double v) { return vdupq_n_f64(v); }
inline Doubles load_wide(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }
inline Doubles load_wide(const std::uint16_t* p) {
  std::uint32_t two;
  std::memcpy(&two, p, sizeof two);
  return vcvt_f64_f32(vget_low_f32(vcvt_f32_f16(vreinterpret_f16_u32(vdup_n_u32(two)))));
}
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return vfmaq_f64(c, a, b); }
constexpr bool kWholeStrips = false;
inline Floats larger(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Floats smaller(Floats a, Floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline unsigned mask_of(uint32x4_t lanes) {
  const uint32x4_t bits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(lanes, bits));
}
inline unsigned reaching_mask(Floats a, Floats b) { return mask_of(vcgeq_f32(a, b)); }
template <int kOffset>
Floats store_codes(std::uint8_t* out, Floats scaled) {
  const int32x4_t code = vcvtnq_s32_f32(scaled);
  const int16x4_t narrow = vmovn_s32(vaddq_s32(code, vdupq_n_s32(kOffset)));
  const uint32x2_t bytes = vreinterpret_u32_s8(vmovn_s16(vcombine_s16(narrow, narrow)));
  const std::uint32_t four = vget_lane_u32(bytes, 0);
  std::memcpy(out, &four, sizeof four);
  return vcvtq_f32_s32(code);
}
inline Doubles magnitude(Doubles v) { return vabsq_f64(v); }
inline Doubles larger(Doubles a, Doubles b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
inline void store_narrow(float* p, Doubles v) { vst1_f32(p, vcvt_f32_f64(v)); }
// The second operand where one is NaN.
inline Doubles smaller(Doubles a, Doubles b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
inline unsigned not_above_mask(Doubles a, Doubles b) {
  const uint64x2_t above = vcgtq_f64(a, b);
  return (vgetq_lane_u64(above, 0) ? 0 : 1) | (vgetq_lane_u64(above, 1) ? 0 : 2);
}
// The stages of a Walsh-Hadamard transform that stay inside a vector.
inline Floats transform_lanes(Floats v) {
  const uint32x4_t odd = {0, ~0u, 0, ~0u}, upper = {0, 0, ~0u, ~0u};
  Floats other = vrev64q_f32(v);
  v = vbslq_f32(odd, other - v, other + v);
  other = vextq_f32(v, v, 2);
  return vbslq_f32(upper, other - v, other + v);
}
// How many of the numbers are larger than each of `own`.
inline void count_larger(const double* numbers, std::size_t count, Doubles own, std::uint32_t* out) {
  uint64x2_t counts = vdupq_n_u64(0);
  for (std::size_t i = 0; i < count; ++i)
    counts = vsubq_u64(counts, vcgtq_f64(spread_wide(numbers[i]), own));
  vst1_u32(out, vmovn_u64(counts));
}
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
constexpr bool kWholeStrips = false;
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline unsigned reaching_mask(Floats a, Floats b) {
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
template <int kOffset>
Floats store_codes(std::uint8_t* out, Floats scaled) {
  const __m256i code = _mm256_cvtps_epi32(scaled);
  alignas(32) std::int32_t lane[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), code);
  for (std::size_t i = 0; i < kLanes; ++i) out[i] = std::uint8_t(lane[i] + kOffset);
  return _mm256_cvtepi32_ps(code);
}
inline Doubles magnitude(Doubles v) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), v); }
inline Doubles larger(Doubles a, Doubles b) { return _mm256_max_pd(a, b); }
inline void store_narrow(float* p, Doubles v) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
inline Doubles smaller(Doubles a, Doubles b) { return _mm256_min_pd(a, b); }
inline unsigned not_above_mask(Doubles a, Doubles b) {
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGT_UQ)));
}
// The stages of a Walsh-Hadamard transform that stay inside a vector.
inline Floats transform_lanes(Floats v) {
  const auto stage = [](Floats a, Floats b, int minus) {
    const Floats sum = _mm256_add_ps(a, b), difference = _mm256_sub_ps(b, a);
    return minus == 1   ? _mm256_blend_ps(sum, difference, 0xaa)
           : minus == 2 ? _mm256_blend_ps(sum, difference, 0xcc)
                        : _mm256_blend_ps(sum, difference, 0xf0);
  };
  v = stage(v, _mm256_permute_ps(v, 0xb1), 1);
  v = stage(v, _mm256_permute_ps(v, 0x4e), 2);
  return stage(v, _mm256_permute2f128_ps(v, v, 1), 4);
}
// How many of the numbers are larger than each of `own`.
inline void count_larger(const double* numbers, std::size_t count, Doubles own, std::uint32_t* out) {
  __m256i counts = _mm256_setzero_si256();
  for (std::size_t i = 0; i < count; ++i) {
    const Doubles more = _mm256_cmp_pd(spread_wide(numbers[i]), own, _CMP_GT_OQ);
    counts = _mm256_sub_epi64(counts, _mm256_castpd_si256(more));
  }
  alignas(32) std::int64_t lane[kLanes / 2];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), counts);
  for (std::size_t l = 0; l < kLanes / 2; ++l) out[l] = std::uint32_t(lane[l]);
}
#endif

#ifndef __AVX512F__
// Move the lanes in `mask` one by one; see above.
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
#endif

inline Floats load_same(const float* p) { return load(p); }
inline Doubles load_same(const double* p) { return load_wide(p); }
inline Floats spread_same(float v) { return spread(v); }
inline Doubles spread_same(double v) { return spread_wide(v); }
inline void store_wide(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }

inline float largest_lane(Floats v) {
  alignas(64) float lane[kLanes];
  store(lane, v);
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i)
      lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
  return lane[0];
}

inline float widen(float v) { return v; }
inline float widen(std::uint16_t v) {
#ifdef __aarch64__
  __fp16 half;
  std::memcpy(&half, &v, sizeof half);
  return float(half);
#else
  return _cvtsh_ss(v);
#endif
}
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

}  // namespace
}  // namespace bliss
