// What the AVX-512 and AMX kernels share: how candidates are written down.
#pragma once

#include <immintrin.h>

#include "kernel.h"

namespace bliss {
namespace {

// Append the entries in `hits` to a query's candidates. Compressing in a register and storing all
// lanes is far faster than a compressing store, and no branch waits on which vectors were hit.
template <std::uint32_t kVectors, class Score>
inline void append(const Panel& panel, Block& block, std::size_t q, std::uint64_t hits,
                   Score score) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 per_norm = _mm512_set1_ps(block.per_norm[q]);
  const __m512 per_residual = _mm512_set1_ps(block.per_residual[q]);
  const __m512 slack = _mm512_set1_ps(block.slack[q]);
  std::uint32_t count = block.candidates[q];
  std::uint32_t* const ids = block.ids + q * block.stride;
  float* const lower = block.lower + q * block.stride;
  float* const upper = block.upper + q * block.stride;
  for (std::uint32_t j = 0; j < kVectors; ++j) {
    const __mmask16 mask = __mmask16(hits >> (16 * j));
    const __m512i id = _mm512_add_epi32(lane, _mm512_set1_epi32(int(panel.first_id + 16 * j)));
    const __m512 bound = _mm512_fmadd_ps(
        per_norm, _mm512_loadu_ps(panel.norm + 16 * j),
        _mm512_fmadd_ps(per_residual, _mm512_loadu_ps(panel.residual + 16 * j), slack));
    const __m512 center = score(j);
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(mask, id));
    _mm512_storeu_ps(lower + count, _mm512_maskz_compress_ps(mask, _mm512_sub_ps(center, bound)));
    _mm512_storeu_ps(upper + count, _mm512_maskz_compress_ps(mask, _mm512_add_ps(center, bound)));
    count += std::uint32_t(__builtin_popcount(mask));
  }
  set_candidates(block, q, count);
}

}  // namespace
}  // namespace bliss
