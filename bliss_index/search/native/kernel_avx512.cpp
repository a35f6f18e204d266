// AVX-512 VNNI: 8 queries x 48 entries in 24 accumulators, tested before they leave registers.
#include "append.h"
#include "panels.h"
#include "preparation.h"
#include "selection.h"

namespace bliss {
namespace {

constexpr std::size_t kPanel = 48, kGroup = 8;

// Scores of one query; returns a bit per entry that passes its test.
inline __attribute__((always_inline)) std::uint64_t test_query(const Panel& panel,
                                                               const Block& block, std::size_t q,
                                                               __m512i sum0, __m512i sum1,
                                                               __m512i sum2, float* scores) {
  const float bound = block.per_norm[q] * panel.largest_norm +
                      block.per_residual[q] * panel.largest_residual;
  const __m512 cut = _mm512_set1_ps(block.threshold[q] - bound);
  const __m512 step = _mm512_set1_ps(block.step[q]);
  const __m512 alpha = _mm512_set1_ps(block.alpha[q]);
  const __m512i sum[3] = {sum0, sum1, sum2};
  std::uint64_t hits = 0;
  for (int j = 0; j < 3; ++j) {
    const __m512 steps = _mm512_mul_ps(step, _mm512_loadu_ps(panel.step + 16 * j));
    const __m512 bias = _mm512_mul_ps(alpha, _mm512_loadu_ps(panel.bias + 16 * j));
    const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[j]), steps, bias);
    _mm512_store_ps(scores + 16 * j, score);
    hits |= std::uint64_t(_mm512_cmp_ps_mask(score, cut, _CMP_GE_OQ)) << (16 * j);
  }
  return hits;
}

// One step of four coordinates for queries q to q + 3. Written out, because the compiler copies
// accumulators around its intrinsic for this instruction, and keeps arrays of them in memory.
#define BLISS_QUERY(offset, sum0, sum1, sum2)          \
  "vpbroadcastd " offset "(%[query]), %[spread]\n\t"   \
  "vpdpbusd %[b0], %[spread], %[" sum0 "]\n\t"         \
  "vpdpbusd %[b1], %[spread], %[" sum1 "]\n\t"         \
  "vpdpbusd %[b2], %[spread], %[" sum2 "]\n\t"
#define BLISS_STEP(o0, o1, o2, o3, q0, q1, q2, q3)                                               \
  {                                                                                              \
    __m512i spread;                                                                              \
    __asm__(BLISS_QUERY(o0, "s00", "s01", "s02") BLISS_QUERY(o1, "s10", "s11", "s12")            \
                BLISS_QUERY(o2, "s20", "s21", "s22") BLISS_QUERY(o3, "s30", "s31", "s32")        \
            : [s00] "+v"(s##q0##0), [s01] "+v"(s##q0##1), [s02] "+v"(s##q0##2),                  \
              [s10] "+v"(s##q1##0), [s11] "+v"(s##q1##1), [s12] "+v"(s##q1##2),                  \
              [s20] "+v"(s##q2##0), [s21] "+v"(s##q2##1), [s22] "+v"(s##q2##2),                  \
              [s30] "+v"(s##q3##0), [s31] "+v"(s##q3##1), [s32] "+v"(s##q3##2),                  \
              [spread] "=&v"(spread)                                                             \
            : [b0] "v"(b0), [b1] "v"(b1), [b2] "v"(b2), [query] "r"(query) : "memory");          \
  }
#define BLISS_ALL(action) \
  action(0) action(1) action(2) action(3) action(4) action(5) action(6) action(7)
#define BLISS_START(q) __m512i s##q##0 = start0, s##q##1 = start1, s##q##2 = start2;
#define BLISS_TEST(q)                                                                      \
  hits[q] = valid & test_query(panel, block, first + q, s##q##0, s##q##1, s##q##2, scores + q * kPanel); \
  pending |= unsigned(hits[q] != 0) << q;

void score_group(const Panel& panel, Block& block, std::size_t first, std::size_t steps) {
  const __m512i start0 = _mm512_loadu_si512(panel.correction);
  const __m512i start1 = _mm512_loadu_si512(panel.correction + 16);
  const __m512i start2 = _mm512_loadu_si512(panel.correction + 32);
  BLISS_ALL(BLISS_START)
  const std::int8_t* entry = panel.codes;
  const std::uint8_t* query = block.codes + first * 4 * steps;
  for (std::size_t step = 0; step < steps; ++step, entry += 4 * kPanel, query += 4 * kGroup) {
    const __m512i b0 = _mm512_loadu_si512(entry);
    const __m512i b1 = _mm512_loadu_si512(entry + 64);
    const __m512i b2 = _mm512_loadu_si512(entry + 128);
    BLISS_STEP("0", "4", "8", "12", 0, 1, 2, 3)
    BLISS_STEP("16", "20", "24", "28", 4, 5, 6, 7)
  }
  alignas(64) float scores[kGroup * kPanel];
  std::uint64_t hits[kGroup];
  const std::uint64_t valid = (std::uint64_t(1) << panel.valid) - 1;
  unsigned pending = 0;
  BLISS_ALL(BLISS_TEST)
  for (; pending; pending &= pending - 1) {
    const std::size_t q = std::size_t(__builtin_ctz(pending));
    append<3>(panel, block, first + q, hits[q], [&](std::uint32_t j) {
      return _mm512_load_ps(scores + q * kPanel + 16 * j);
    });
  }
}

void score(const Panel& panel, Block& block, std::size_t steps) {
  Fetch fetch(panel, 4 * kPanel * steps, block.count / kGroup);
  for (std::size_t first = 0; first < block.count; first += kGroup) {
    fetch.part();
    score_group(panel, block, first, steps);
  }
}

#undef BLISS_QUERY
#undef BLISS_STEP
#undef BLISS_ALL
#undef BLISS_START
#undef BLISS_TEST

}  // namespace

const Kernel avx512_kernel = {
    "avx512-vnni", {kPanel, kPanel, kGroup, 4}, 512, 127, 128, score, nothing, nothing,
    load_query, widen_query, prepare_query<127, 128>, measure, prepare_entry,
    dot32<std::uint16_t>, dot32<float>, dot64<std::uint16_t>, dot64<float>, dot64<double>,
    class_products<double>, class_products<float>, pair_products, smallest, kLanes, select, rank,
};

}  // namespace bliss
