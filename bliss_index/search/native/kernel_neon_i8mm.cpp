// Arm with products of 2 x 8 by 8 x 2 signed bytes (SMMLA): pairs of queries with pairs of entries.
#include "neon.h"

namespace bliss {
namespace {

constexpr std::size_t kDepth = 8;

#define BLISS_PAIRS(action, p) \
  action(p, 0) action(p, 1) action(p, 2) action(p, 3) action(p, 4) action(p, 5)
#define BLISS_ALL(action) \
  BLISS_PAIRS(action, 0) BLISS_PAIRS(action, 1) BLISS_PAIRS(action, 2) BLISS_PAIRS(action, 3)
#define BLISS_START(p, r) int32x4_t s##p##r = zero;
// Written out, because the compiler loads all queries before it uses one, and then lacks registers.
#define BLISS_SUM(r) "smmla %[s" #r "].4s, %[query].16b, %[e" #r "].16b\n\t"
#define BLISS_ROW(p, offset)                                                                  \
  {                                                                                           \
    int8x16_t query;                                                                          \
    __asm__("ldr %q[query], [%[from], " offset "]\n\t"                                        \
            BLISS_SUM(0) BLISS_SUM(1) BLISS_SUM(2) BLISS_SUM(3) BLISS_SUM(4) BLISS_SUM(5)     \
            : [s0] "+w"(s##p##0), [s1] "+w"(s##p##1), [s2] "+w"(s##p##2), [s3] "+w"(s##p##3), \
              [s4] "+w"(s##p##4), [s5] "+w"(s##p##5), [query] "=&w"(query)                    \
            : [e0] "w"(e0), [e1] "w"(e1), [e2] "w"(e2), [e3] "w"(e3), [e4] "w"(e4),           \
              [e5] "w"(e5), [from] "r"(queries) : "memory");                                  \
  }
// A register holds the sums of two queries with two entries: those of a query are put together.
#define BLISS_PUT(p, j, left, right)                                                         \
  sums[2 * p][j] = vcombine_s32(vget_low_s32(s##p##left), vget_low_s32(s##p##right));        \
  sums[2 * p + 1][j] = vcombine_s32(vget_high_s32(s##p##left), vget_high_s32(s##p##right));
#define BLISS_STORE(p) BLISS_PUT(p, 0, 0, 1) BLISS_PUT(p, 1, 2, 3) BLISS_PUT(p, 2, 4, 5)

void multiply(const std::int8_t* entries, const std::int8_t* queries, std::size_t steps,
              int32x4_t (*sums)[kVectors]) {
  const int32x4_t zero = vdupq_n_s32(0);
  BLISS_ALL(BLISS_START)
  for (std::size_t step = 0; step < steps;
       ++step, entries += kDepth * kPanel, queries += kDepth * kGroup) {
    const int8x16_t e0 = vld1q_s8(entries), e1 = vld1q_s8(entries + 16),
                    e2 = vld1q_s8(entries + 32), e3 = vld1q_s8(entries + 48),
                    e4 = vld1q_s8(entries + 64), e5 = vld1q_s8(entries + 80);
    BLISS_ROW(0, "#0") BLISS_ROW(1, "#16") BLISS_ROW(2, "#32") BLISS_ROW(3, "#48")
  }
  BLISS_STORE(0) BLISS_STORE(1) BLISS_STORE(2) BLISS_STORE(3)
}

#undef BLISS_PAIRS
#undef BLISS_ALL
#undef BLISS_START
#undef BLISS_SUM
#undef BLISS_ROW
#undef BLISS_PUT
#undef BLISS_STORE

void score(const Panel& panel, Block& block, std::size_t steps) {
  score_groups<kDepth>(panel, block, steps, multiply);
}

}  // namespace

const Kernel neon_i8mm_kernel = {
    "neon-i8mm", {kPanel, kPanel, kGroup, kDepth, 8}, 256, 127, 0, score, nothing, nothing,
    load_query, widen_query, prepare_query<127, 0>, measure, prepare_entry,
    dot32<std::uint16_t>, dot32<float>, dot64<std::uint16_t>, dot64<float>, dot64<double>,
    class_products<double>, class_products<float>, pair_products, smallest, kLanes, select, rank,
};

}  // namespace bliss
