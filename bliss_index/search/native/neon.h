// What the kernels for Arm share: 8 queries against 12 entries in 24 registers of sums, and their test.
#pragma once

#include "panels.h"
#include "preparation.h"
#include "selection.h"

namespace bliss {
namespace {

constexpr std::size_t kPanel = 48, kGroup = 8, kTogether = 12, kVectors = kTogether / 4;

// Scores of one query with twelve entries from `first` on; those that pass its test are appended.
inline void test_query(const Panel& panel, Block& block, std::size_t q, std::size_t first,
                       const int32x4_t* sums) {
  const float bound = block.per_norm[q] * panel.largest_norm +
                      block.per_residual[q] * panel.largest_residual;
  const Floats cut = spread(block.threshold[q] - bound);
  Floats score[kVectors];
  unsigned mask = 0;
  for (std::size_t j = 0; j < kVectors; ++j) {
    const std::size_t at = first + 4 * j;
    const Floats dot = vcvtq_f32_s32(sums[j]) * load(panel.step + at);
    score[j] = fma(dot, spread(block.step[q]), spread(block.alpha[q]) * load(panel.bias + at));
    mask |= reaching_mask(score[j], cut) << (4 * j);
  }
  if (panel.valid < first + kTogether)
    mask &= panel.valid <= first ? 0 : (1u << (panel.valid - first)) - 1;
  if (__builtin_expect(mask == 0, 1)) return;
  float lower[kTogether], upper[kTogether];
  for (std::size_t j = 0; j < kVectors; ++j) {
    const std::size_t at = first + 4 * j;
    const Floats own =
        fma(spread(block.per_norm[q]), load(panel.norm + at),
            fma(spread(block.per_residual[q]), load(panel.residual + at), spread(block.slack[q])));
    store(lower + 4 * j, score[j] - own);
    store(upper + 4 * j, score[j] + own);
  }
  std::uint32_t count = block.candidates[q];
  for (; mask; mask &= mask - 1, ++count) {
    const unsigned i = unsigned(__builtin_ctz(mask));
    block.ids[q * block.stride + count] = panel.first_id + std::uint32_t(first) + i;
    block.lower[q * block.stride + count] = lower[i];
    block.upper[q * block.stride + count] = upper[i];
  }
  set_candidates(block, q, count);
}

// `multiply` fills the sums (queries x vectors) of a group with twelve entries.
template <std::size_t kDepth, class Multiply>
void score_groups(const Panel& panel, Block& block, std::size_t steps, Multiply multiply) {
  Fetch fetch(panel, kDepth * kPanel * steps, block.count / kGroup);
  for (std::size_t group = 0; group < block.count; group += kGroup) {
    fetch.part();
    const std::int8_t* const queries =
        reinterpret_cast<const std::int8_t*>(block.codes) + group * kDepth * steps;
    for (std::size_t first = 0; first < kPanel; first += kTogether) {
      int32x4_t sums[kGroup][kVectors];
      multiply(panel.codes + kDepth * first, queries, steps, sums);
      for (std::size_t q = 0; q < kGroup; ++q) test_query(panel, block, group + q, first, sums[q]);
    }
  }
}

}  // namespace
}  // namespace bliss
