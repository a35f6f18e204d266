// Arm with dot products of four signed bytes (SDOT).
#include "neon.h"

namespace bliss {
namespace {

#define BLISS_ALL(action) \
  action(0, a, 0) action(1, a, 1) action(2, a, 2) action(3, a, 3) \
  action(4, b, 0) action(5, b, 1) action(6, b, 2) action(7, b, 3)
#define BLISS_START(q, half, lane) int32x4_t s##q##0 = zero, s##q##1 = zero, s##q##2 = zero;
#define BLISS_STEP(q, half, lane)                  \
  s##q##0 = vdotq_laneq_s32(s##q##0, e0, half, lane); \
  s##q##1 = vdotq_laneq_s32(s##q##1, e1, half, lane); \
  s##q##2 = vdotq_laneq_s32(s##q##2, e2, half, lane);
#define BLISS_STORE(q, half, lane) sums[q][0] = s##q##0, sums[q][1] = s##q##1, sums[q][2] = s##q##2;

void multiply(const std::int8_t* entries, const std::int8_t* queries, std::size_t steps,
              int32x4_t (*sums)[kVectors]) {
  const int32x4_t zero = vdupq_n_s32(0);
  BLISS_ALL(BLISS_START)
  for (std::size_t step = 0; step < steps; ++step, entries += 4 * kPanel, queries += 4 * kGroup) {
    const int8x16_t e0 = vld1q_s8(entries), e1 = vld1q_s8(entries + 16), e2 = vld1q_s8(entries + 32);
    const int8x16_t a = vld1q_s8(queries), b = vld1q_s8(queries + 16);
    BLISS_ALL(BLISS_STEP)
  }
  BLISS_ALL(BLISS_STORE)
}

#undef BLISS_ALL
#undef BLISS_START
#undef BLISS_STEP
#undef BLISS_STORE

void score(const Panel& panel, Block& block, std::size_t steps) {
  score_groups<4>(panel, block, steps, multiply);
}

}  // namespace

const Kernel neon_dotprod_kernel = {
    "neon-dotprod", {kPanel, kPanel, kGroup, 4}, 256, 127, 0, score, nothing, nothing,
    load_query, widen_query, prepare_query<127, 0>, measure, prepare_entry,
    dot32<std::uint16_t>, dot32<float>, dot64<std::uint16_t>, dot64<float>, dot64<double>,
    class_products<double>, class_products<float>, pair_products, smallest, kLanes, select, rank,
};

}  // namespace bliss
