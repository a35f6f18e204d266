// AVX-512 VNNI: 8 queries x 48 entries in 24 accumulators, tested before they leave registers.
#include "vector_ops.h"

namespace bliss {
namespace {

template <int kQuery>
inline __attribute__((always_inline)) void test_query(const Panel& panel, Group& group,
                                                      __m512i sum0, __m512i sum1, __m512i sum2) {
  const __m512i sum[3] = {sum0, sum1, sum2};
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

// The compiler copies accumulators around its intrinsic for this instruction; this form does not.
inline __attribute__((always_inline)) void multiply_add(__m512i& sum, __m512i query,
                                                        __m512i entries) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(query), "v"(entries));
}

// One step of four coordinates for query q; accumulators are plain variables, so that they stay in
// registers: arrays of them end up in memory.
#define BLISS_STEP(q)                                        \
  {                                                          \
    std::int32_t four;                                       \
    std::memcpy(&four, query + 4 * q, 4);                    \
    const __m512i a = _mm512_set1_epi32(four);               \
    multiply_add(s##q##0, a, b0);                            \
    multiply_add(s##q##1, a, b1);                            \
    multiply_add(s##q##2, a, b2);                            \
  }
#define BLISS_ALL(action) \
  action(0) action(1) action(2) action(3) action(4) action(5) action(6) action(7)
#define BLISS_START(q) __m512i s##q##0 = start0, s##q##1 = start1, s##q##2 = start2;
#define BLISS_TEST(q) test_query<q>(panel, group, s##q##0, s##q##1, s##q##2);

void score(const Panel& panel, Group& group, std::size_t steps) {
  const __m512i start0 = _mm512_loadu_si512(panel.correction);
  const __m512i start1 = _mm512_loadu_si512(panel.correction + 16);
  const __m512i start2 = _mm512_loadu_si512(panel.correction + 32);
  BLISS_ALL(BLISS_START)
  const std::int8_t* entry = panel.codes;
  const std::uint8_t* query = group.codes;
  for (std::size_t step = 0; step < steps; ++step, entry += 4 * kPanel, query += 4 * kGroup) {
    const __m512i b0 = _mm512_loadu_si512(entry);
    const __m512i b1 = _mm512_loadu_si512(entry + 64);
    const __m512i b2 = _mm512_loadu_si512(entry + 128);
    BLISS_ALL(BLISS_STEP)
  }
  BLISS_ALL(BLISS_TEST)
}

#undef BLISS_STEP
#undef BLISS_ALL
#undef BLISS_START
#undef BLISS_TEST

}  // namespace

const Kernel avx512_kernel = {
    "avx512-vnni",          127,
    128,                    score,
    load_query,             prepare_query<127>,
    dot32<std::uint16_t>,   dot32<float>,
    dot64<std::uint16_t>,   dot64<float>,
    dot64<double>,          kLanes,
    about_kth_largest,
};

}  // namespace bliss
