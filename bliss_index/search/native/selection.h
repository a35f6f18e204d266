// Choosing among numbers: candidates, classes, and the order of a few.
#pragma once

#include "vectors.h"

namespace bliss {
namespace {

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
  for (std::size_t j = 0; j < count; j += kLanes / 2)
    count_larger(numbers, count, load_wide(numbers + j), larger + j);
}

}  // namespace
}  // namespace bliss
