// AVX-512 VNNI: 8 queries x 48 entries in 24 accumulators, tested before they leave registers.
#include "vector_ops.h"

namespace bliss {
namespace {

template <int kQuery>
inline __attribute__((always_inline)) void test_query(const Panel& panel, Group& group,
                                                      const __m512i (&sum)[3]) {
  const float bound = group.per_norm[kQuery] * panel.largest_norm +
                      group.per_residual[kQuery] * panel.largest_residual;
  const __m512 cut = _mm512_set1_ps(group.threshold[kQuery] - bound);
  const __m512 step = _mm512_set1_ps(group.step[kQuery]);
  const __m512 alpha = _mm512_set1_ps(group.alpha[kQuery]);
  __m512 score[3];
  __mmask16 hit[3];
  for (int j = 0; j < 3; ++j) {
    const __m512 dot = _mm512_mul_ps(_mm512_cvtepi32_ps(sum[j]), _mm512_loadu_ps(panel.step + 16 * j));
    score[j] = _mm512_fmadd_ps(dot, step, _mm512_mul_ps(alpha, _mm512_loadu_ps(panel.bias + 16 * j)));
    hit[j] = _mm512_cmp_ps_mask(score[j], cut, _CMP_GE_OQ);
  }
  if (__builtin_expect((hit[0] | hit[1] | hit[2]) == 0, 1)) return;
  for (std::uint32_t j = 0; j < 3; ++j) {
    __mmask16 mask = hit[j];
    if (panel.valid < kPanel) {
      const int left = int(panel.valid) - int(16 * j);
      mask &= left >= 16 ? 0xffff : left <= 0 ? 0 : (1u << left) - 1;
    }
    if (!mask) continue;
    const __m512i lane =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i id = _mm512_add_epi32(lane, _mm512_set1_epi32(int(panel.first_id + 16 * j)));
    // Compressing in a register and storing all lanes is far faster than a compressing store.
    const std::uint32_t count = group.count[kQuery];
    _mm512_storeu_si512(group.ids[kQuery] + count, _mm512_maskz_compress_epi32(mask, id));
    _mm512_storeu_ps(group.scores[kQuery] + count, _mm512_maskz_compress_ps(mask, score[j]));
    group.count[kQuery] = count + std::uint32_t(__builtin_popcount(mask));
  }
}

void score(const Panel& panel, Group& group, std::size_t steps) {
  __m512i sum[kGroup][3];
  for (int j = 0; j < 3; ++j) {
    const __m512i start = _mm512_loadu_si512(panel.correction + 16 * j);
    for (std::size_t q = 0; q < kGroup; ++q) sum[q][j] = start;
  }
  const std::int8_t* entry = panel.codes;
  const std::uint8_t* query = group.codes;
#pragma GCC unroll 2
  for (std::size_t step = 0; step < steps; ++step, entry += 4 * kPanel, query += 4 * kGroup) {
    const __m512i b0 = _mm512_loadu_si512(entry);
    const __m512i b1 = _mm512_loadu_si512(entry + 64);
    const __m512i b2 = _mm512_loadu_si512(entry + 128);
#pragma GCC unroll 8
    for (std::size_t q = 0; q < kGroup; ++q) {
      std::int32_t four;
      std::memcpy(&four, query + 4 * q, 4);
      const __m512i a = _mm512_set1_epi32(four);
      sum[q][0] = _mm512_dpbusd_epi32(sum[q][0], a, b0);
      sum[q][1] = _mm512_dpbusd_epi32(sum[q][1], a, b1);
      sum[q][2] = _mm512_dpbusd_epi32(sum[q][2], a, b2);
    }
  }
  test_query<0>(panel, group, sum[0]);
  test_query<1>(panel, group, sum[1]);
  test_query<2>(panel, group, sum[2]);
  test_query<3>(panel, group, sum[3]);
  test_query<4>(panel, group, sum[4]);
  test_query<5>(panel, group, sum[5]);
  test_query<6>(panel, group, sum[6]);
  test_query<7>(panel, group, sum[7]);
}

}  // namespace

const Kernel avx512_kernel = {
    "avx512-vnni",          127,
    128,                    score,
    load_query,             prepare_query<127>,
    dot32<std::uint16_t>,   dot32<float>,
    dot64<std::uint16_t>,   dot64<float>,
    dot64<double>,          kLanes,
};

}  // namespace bliss
