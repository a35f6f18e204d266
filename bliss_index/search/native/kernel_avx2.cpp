// AVX2: 4 queries x 16 entries at a time. Query codes have 7 bits, so that the 16-bit sums of
// vpmaddubsw (2 * 127 * 127 = 32258) cannot saturate.
#include "panels.h"
#include "preparation.h"
#include "selection.h"

namespace bliss {
namespace {

constexpr std::size_t kPanel = 48, kGroup = 8;

void test_query(const Panel& panel, Block& block, std::size_t q, std::size_t part, __m256i sum) {
  const float bound = block.per_norm[q] * panel.largest_norm +
                      block.per_residual[q] * panel.largest_residual;
  const __m256 cut = _mm256_set1_ps(block.threshold[q] - bound);
  const __m256 dot = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_loadu_ps(panel.step + 8 * part));
  const __m256 bias = _mm256_mul_ps(_mm256_set1_ps(block.alpha[q]), _mm256_loadu_ps(panel.bias + 8 * part));
  const __m256 score = _mm256_fmadd_ps(dot, _mm256_set1_ps(block.step[q]), bias);
  unsigned mask = unsigned(_mm256_movemask_ps(_mm256_cmp_ps(score, cut, _CMP_GE_OQ)));
  const int left = int(panel.valid) - int(8 * part);
  if (left < 8) mask &= left <= 0 ? 0 : (1u << left) - 1;
  if (__builtin_expect(mask == 0, 1)) return;
  const __m256 own = _mm256_fmadd_ps(
      _mm256_set1_ps(block.per_norm[q]), _mm256_loadu_ps(panel.norm + 8 * part),
      _mm256_fmadd_ps(_mm256_set1_ps(block.per_residual[q]),
                      _mm256_loadu_ps(panel.residual + 8 * part), _mm256_set1_ps(block.slack[q])));
  alignas(32) float lower[8], upper[8];
  _mm256_store_ps(lower, _mm256_sub_ps(score, own));
  _mm256_store_ps(upper, _mm256_add_ps(score, own));
  std::uint32_t count = block.candidates[q];
  for (; mask; mask &= mask - 1, ++count) {
    const unsigned i = unsigned(__builtin_ctz(mask));
    block.ids[q * block.stride + count] = panel.first_id + std::uint32_t(8 * part) + i;
    block.lower[q * block.stride + count] = lower[i];
    block.upper[q * block.stride + count] = upper[i];
  }
  set_candidates(block, q, count);
}

void score_group(const Panel& panel, Block& block, std::size_t group, std::size_t steps) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t part = 0; part < 6; part += 2) {
    for (std::size_t first = 0; first < kGroup; first += 4) {
      __m256i sum[4][2];
      for (std::size_t q = 0; q < 4; ++q)
        for (std::size_t j = 0; j < 2; ++j)
          sum[q][j] = _mm256_loadu_si256(
              reinterpret_cast<const __m256i*>(panel.correction + 8 * (part + j)));
      const std::int8_t* entry = panel.codes + 32 * part;
      const std::uint8_t* query = block.codes + group * 4 * steps + 4 * first;
      for (std::size_t step = 0; step < steps; ++step, entry += 4 * kPanel, query += 4 * kGroup) {
        const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entry));
        const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(entry + 32));
#pragma GCC unroll 4
        for (std::size_t q = 0; q < 4; ++q) {
          std::int32_t four;
          std::memcpy(&four, query + 4 * q, 4);
          const __m256i a = _mm256_set1_epi32(four);
          sum[q][0] = _mm256_add_epi32(sum[q][0], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b0), ones));
          sum[q][1] = _mm256_add_epi32(sum[q][1], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b1), ones));
        }
      }
      for (std::size_t q = 0; q < 4; ++q)
        for (std::size_t j = 0; j < 2; ++j) test_query(panel, block, group + first + q, part + j, sum[q][j]);
    }
  }
}

void score(const Panel& panel, Block& block, std::size_t steps) {
  Fetch fetch(panel, 4 * kPanel * steps, block.count / kGroup);
  for (std::size_t first = 0; first < block.count; first += kGroup) {
    fetch.part();
    score_group(panel, block, first, steps);
  }
}

}  // namespace

const Kernel avx2_kernel = {
    "avx2", {kPanel, kPanel, kGroup, 4}, 128, 63, 64, score, nothing, nothing,
    load_query, widen_query, prepare_query<63, 64>, measure, prepare_entry,
    dot32<std::uint16_t>, dot32<float>, dot64<std::uint16_t>, dot64<float>, dot64<double>,
    class_products<double>, class_products<float>, pair_products, smallest, kLanes, select, rank,
};

}  // namespace bliss
