// What the AVX-512 and AMX kernels share: how candidates are written down.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace bliss {
namespace {

// Append the entries in `hits` to a query's candidates. Compressing in a register and storing all
// lanes is far faster than a compressing store, and no branch waits on which vectors were hit.
template <std::uint32_t kVectors>
inline void append(const Panel& panel, Block& block, std::size_t q, std::uint64_t hits,
                   const float* scores) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  std::uint32_t count = block.candidates[q];
  std::uint32_t* const ids = block.ids + q * block.stride;
  float* const kept = block.scores + q * block.stride;
  for (std::uint32_t j = 0; j < kVectors; ++j) {
    const __mmask16 mask = __mmask16(hits >> (16 * j));
    const __m512i id = _mm512_add_epi32(lane, _mm512_set1_epi32(int(panel.first_id + 16 * j)));
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(mask, id));
    _mm512_storeu_ps(kept + count,
                     _mm512_maskz_compress_ps(mask, _mm512_load_ps(scores + 16 * j)));
    count += std::uint32_t(__builtin_popcount(mask));
  }
  set_candidates(block, q, count);
}

}  // namespace
}  // namespace bliss
