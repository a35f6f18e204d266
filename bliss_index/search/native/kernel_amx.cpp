// AMX: 32 queries x 32 entries in four tiles of sums. While the tiles multiply one group of queries,
// the sums of the group before are tested by vector instructions.
#include <sys/syscall.h>
#include <unistd.h>

#include "append.h"
#include "panels.h"
#include "preparation.h"
#include "selection.h"

namespace bliss {
namespace {

constexpr std::size_t kTile = 16, kPanel = 32, kGroup = 32, kDepth = 64;
constexpr std::size_t kTileBytes = kTile * kDepth;  // of codes, of either side

struct alignas(64) Sums {
  std::int32_t of[kGroup][kPanel];
};

// Tiles 0 to 3 hold sums, 4 and 5 queries, 6 and 7 entries; all are 16 rows of 64 bytes.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

void enter() {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
  __asm__("" : : "r"(&shapes) : "memory");  // GCC takes the intrinsic to read eight bytes only
  _tile_loadconfig(&shapes);
}

void leave() { _tile_release(); }

// Tests the sums of a group, some queries at a time.
class Test {
 public:
  Test(const Panel& panel, Block& block)
      : panel_(panel), block_(block),
        valid_(panel.valid < kPanel ? (1u << panel.valid) - 1 : 0xffffffffu),
        step_{load(panel.step), load(panel.step + 16)},
        bias_{load(panel.bias), load(panel.bias + 16)} {}

  void begin(const Sums& sums, std::size_t first) {
    sums_ = &sums;
    first_ = first;
    for (std::size_t q = 0; q < kGroup; q += kLanes) {
      const Floats bound = fma(spread(panel_.largest_norm), load(block_.per_norm + first + q),
                               spread(panel_.largest_residual) *
                                   load(block_.per_residual + first + q));
      store(cut_ + q, load(block_.threshold + first + q) - bound);
    }
  }

  void queries(std::size_t from, std::size_t to) {
    std::uint32_t pending = 0;
    for (std::size_t q = from; q < to; ++q) {
      const Floats cut = spread(cut_[q]);
      const __mmask32 hits = _mm512_kunpackw(_mm512_cmp_ps_mask(score(q, 1), cut, _CMP_GE_OQ),
                                             _mm512_cmp_ps_mask(score(q, 0), cut, _CMP_GE_OQ));
      hits_[q] = std::uint32_t(hits) & valid_;
      pending |= std::uint32_t(hits_[q] != 0) << q;
    }
    for (; __builtin_expect(pending != 0, 0); pending &= pending - 1) {
      const std::size_t q = std::size_t(__builtin_ctz(pending));
      append<2>(panel_, block_, first_ + q, hits_[q],
                [&](std::uint32_t half) { return score(q, half); });
    }
  }

 private:
  Floats score(std::size_t q, std::size_t half) const {
    const Floats steps = spread(block_.step[first_ + q]) * step_[half];
    const Floats bias = spread(block_.alpha[first_ + q]) * bias_[half];
    return fma(_mm512_cvtepi32_ps(_mm512_load_si512(sums_->of[q] + 16 * half)), steps, bias);
  }

  const Panel& panel_;
  Block& block_;
  const std::uint32_t valid_;
  const Floats step_[2], bias_[2];
  const Sums* sums_ = nullptr;
  std::size_t first_ = 0;
  alignas(64) float cut_[kGroup];
  std::uint32_t hits_[kGroup];
};

template <class Meanwhile>
inline void multiply(const std::int8_t* entries, const std::uint8_t* queries, std::size_t steps,
                     Sums& sums, Meanwhile meanwhile) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::size_t step = 0; step < steps; ++step) {
    _tile_loadd(6, entries, kDepth);
    _tile_loadd(4, queries, kDepth);
    _tile_loadd(7, entries + kTileBytes, kDepth);
    _tile_loadd(5, queries + kTileBytes, kDepth);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
    entries += 2 * kTileBytes;
    queries += 2 * kTileBytes;
    meanwhile(step);
  }
  _tile_stored(0, &sums.of[0][0], kPanel * 4);
  _tile_stored(1, &sums.of[0][kTile], kPanel * 4);
  _tile_stored(2, &sums.of[kTile][0], kPanel * 4);
  _tile_stored(3, &sums.of[kTile][kTile], kPanel * 4);
}

void score(const Panel& panel, Block& block, std::size_t steps) {
  Sums sums[2];
  Test test(panel, block);
  Fetch fetch(panel, kPanel * kDepth * steps, block.count / kGroup);
  const std::size_t at_once = (kGroup + steps - 1) / steps;
  std::size_t turn = 0;
  for (std::size_t first = 0; first < block.count; first += kGroup, turn ^= 1) {
    fetch.part();
    const std::uint8_t* const queries = block.codes + first * kDepth * steps;
    if (first == 0) {
      multiply(panel.codes, queries, steps, sums[turn], [](std::size_t) {});
      continue;
    }
    test.begin(sums[turn ^ 1], first - kGroup);
    multiply(panel.codes, queries, steps, sums[turn], [&](std::size_t step) {
      const std::size_t from = step * at_once, to = from + at_once;
      if (from < kGroup) test.queries(from, to < kGroup ? to : kGroup);
    });
  }
  test.begin(sums[turn ^ 1], block.count - kGroup);
  test.queries(0, kGroup);
}

}  // namespace

bool amx_is_usable() {
  // Linux gives the tile registers to processes that ask (arch_prctl, ARCH_REQ_XCOMP_PERM), once for
  // all threads. What the processor can do is told by CPUID leaf 7.
  static const bool usable = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a = 0, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    constexpr unsigned kTileBit = 1u << 24, kInt8Bit = 1u << 25;
    if (!(d & kTileBit) || !(d & kInt8Bit)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return usable;
}

const Kernel amx_kernel = {
    "amx-int8", {kPanel, kTile, kGroup, kDepth}, 512, 127, 0, score, enter, leave,
    load_query, widen_query, prepare_query<127, 0>, measure, prepare_entry,
    dot32<std::uint16_t>, dot32<float>, dot64<std::uint16_t>, dot64<float>, dot64<double>,
    class_products<double>, class_products<float>, pair_products, smallest, kLanes, select, rank,
};

}  // namespace bliss
