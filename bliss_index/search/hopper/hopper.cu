// Exact top-k on Hopper (sm_90a): integer products on the tensor cores, thresholds, float64 rescoring.
//
// Compiled at run time by NVRTC, for one vector length and kind of number; see hopper_launch.py.
// docs/certificate.md derives the bounds, proposals.py names the steps. Macros:
//
//   DIM               coordinates of a vector
//   CODE_DIM          bytes of a query's codes, a multiple of 64
//   QUERY_KIND, ENTRY_KIND   0 float16, 1 float32, 2 float64
//   TILE              entries that are multiplied at once, 64 or 128
//   GROUPS, STAGES    warpgroups that multiply, tiles of entries on their way
//   SHARED_CHUNKS     runs of 128 coordinates of the queries' codes that are kept in shared memory;
//                     the others are kept in registers
//   SPLIT             blocks of the maxima that a thread's part of a tile is cut into
//
// A score is the float 1.5 * 2^23 + lift, rounded to an integer, to whose bits the tensor cores add
// the product of the codes: scores compare as integers, and cost no conversion.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define UNIT_TILE 128                    // entries that share a unit
#define LANES 4                          // threads that share a row of a product
#define SCORES (TILE / 2)                // of a thread, of two rows
#define DEPTH ((CODE_DIM + 127) / 128 * 128)
#define STEPS (DEPTH / 32)               // instructions of a tile
#define KEPT_STEPS (STEPS - 4 * SHARED_CHUNKS)  // whose queries are in registers
#define CHUNK_BYTES (64 * 128)           // of the queries of a warpgroup
#define ROWS (64 * GROUPS)
#define WARPS (4 * GROUPS)
#define TILE_BYTES (TILE * DEPTH)
#define BESIDE_BYTES (4 * TILE + 16)     // lifts and facts of a tile
#define STAGE_BYTES (TILE_BYTES + BESIDE_BYTES)
#define THREADS (32 * WARPS)
#define NOTHING ((int)0x80000000)
#define ZERO_KEY 0x4B400000              // the bits of ZERO_SCORE
#define ZERO_SCORE 12582912.0f
#define AT_ONCE 4                        // scores that are compared before a branch
#define UNROUNDED 2.0f                   // units that rounding can have taken away
#define INFINITE __int_as_float(0x7F800000)

// What the entries of a tile share: unit, largest norm and residual, one over the unit.
struct __align__(16) Facts { float step, norm, residual, per_step; };
struct __align__(8) Record { int place, key; };

// ---- instructions ----------------------------------------------------------------------------

__device__ __forceinline__ u32 shared_address(const void* at) {
  return (u32)__cvta_generic_to_shared(at);
}

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}\n" ::"r"(barrier), "r"(parity)
      : "memory");
}

// Copy a run of bytes to shared memory without a thread's help; the barrier counts them.
__device__ __forceinline__ void copy_bytes(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// Wait for the other threads of a warpgroup.
__device__ __forceinline__ void group_wait(int name) {
  asm volatile("bar.sync %0, 128;" ::"r"(name) : "memory");
}

// Rows of 128 bytes, in groups of eight, their sixteenths exchanged as the hardware does it.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  return (u64)((address & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

#define ACC4(i) "+r"(acc[i]), "+r"(acc[i + 1]), "+r"(acc[i + 2]), "+r"(acc[i + 3])
#define ACC16(i) ACC4(i), ACC4(i + 4), ACC4(i + 8), ACC4(i + 12)

#define NAMES32                                                                                 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"      \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#if TILE == 128
#define ACC ACC16(0), ACC16(16), ACC16(32), ACC16(48)
#define NAMES                                                                                   \
  "{" NAMES32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,"   \
  "%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
#define FROM_REGISTERS "{%64,%65,%66,%67}, %68, p;\n}\n"
#define FROM_MEMORY "%64, %65, p;\n}\n"
#define MULTIPLY "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
#else
#define ACC ACC16(0), ACC16(16)
#define NAMES "{" NAMES32 "}, "
#define FROM_REGISTERS "{%32,%33,%34,%35}, %36, p;\n}\n"
#define FROM_MEMORY "%32, %33, p;\n}\n"
#define MULTIPLY "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 "
#endif
#define ALWAYS "{\n.reg .pred p;\nsetp.eq.u32 p, 0, 0;\n"

// acc += a * b, 64 x 32 and 32 x TILE int8: a in registers, b in shared memory.
__device__ __forceinline__ void multiply(int (&acc)[SCORES], const u32* a, u64 b) {
  asm volatile(ALWAYS MULTIPLY NAMES FROM_REGISTERS
               : ACC
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// The same with both in shared memory.
__device__ __forceinline__ void multiply_shared(int (&acc)[SCORES], u64 a, u64 b) {
  asm volatile(ALWAYS MULTIPLY NAMES FROM_MEMORY : ACC : "l"(a), "l"(b));
}

__device__ __forceinline__ void products_begin(int (&acc)[SCORES]) {
  asm volatile("wgmma.fence.sync.aligned;" : ACC::"memory");
}

__device__ __forceinline__ void products_end(int (&acc)[SCORES]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" : ACC::"memory");
}

// ---- the product -----------------------------------------------------------------------------

// Where the parts of the shared memory are.
struct Layout {
  u32 stages, queries, beside, full;
  int* used;         // warps that are done with a stage
  float* row_facts;  // threshold, per_norm, per_residual of every row, and nothing
};

__device__ __forceinline__ Layout layout_of(u8* memory) {
  Layout at;
  at.stages = (shared_address(memory) + 1023) & ~1023u;
  at.queries = at.stages + STAGES * TILE_BYTES;
  at.beside = at.queries + GROUPS * SHARED_CHUNKS * CHUNK_BYTES;
  at.full = at.beside + STAGES * BESIDE_BYTES;
  u8* after = memory + (at.full + 8 * STAGES - shared_address(memory));
  at.used = (int*)after;
  at.row_facts = (float*)(after + 8 * STAGES);
  return at;
}

__device__ __forceinline__ float2 load_pair(u32 address) {
  float2 pair;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
  return pair;
}

__device__ __forceinline__ Facts load_facts(u32 address) {
  Facts facts;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(facts.step), "=f"(facts.norm), "=f"(facts.residual), "=f"(facts.per_step)
               : "r"(address));
  return facts;
}

// The entries that a program multiplies with its queries.
struct Entries {
  const u8* codes;
  const float* lifts;
  const Facts* facts;
  int size, first, tiles;
};

// Have a tile copied to its stage.
__device__ __forceinline__ void bring_tile(const Layout& at, const Entries& entries, int i) {
  const int stage = i % STAGES;
  const long long tile = entries.first + i;
  const u32 full = at.full + 8 * stage, beside = at.beside + stage * BESIDE_BYTES;
  barrier_expect(full, STAGE_BYTES);
  copy_bytes(at.stages + stage * TILE_BYTES, entries.codes + tile * TILE_BYTES, TILE_BYTES, full);
  copy_bytes(beside, entries.lifts + tile * TILE, 4 * TILE, full);
  copy_bytes(beside + 4 * TILE, entries.facts + tile * TILE / UNIT_TILE, 16, full);
}

// Say that a warp is done with a tile; the last one has another brought in its place.
__device__ __forceinline__ void release_tile(const Layout& at, const Entries& entries, int i) {
  int* used = at.used + i % STAGES;
  __threadfence_block();
  if (atomicAdd(used, 1) != WARPS - 1) return;
  *used = 0;
  __threadfence_block();
  if (i + STAGES < entries.tiles) bring_tile(at, entries, i + STAGES);
}

// Four bytes of the codes of a query; zero behind their end.
__device__ __forceinline__ u32 load_code(const u8* codes, int row, int n, int column) {
  if (column >= CODE_DIM) return 0;
  return *(const u32*)(codes + (long long)min(row, n - 1) * CODE_DIM + column);
}

// The queries of a thread's two rows, as the tensor cores take them from registers.
__device__ __forceinline__ void load_queries(u32 (&a)[4 * KEPT_STEPS + 4], const u8* codes, int row,
                                             int n, int quad) {
#pragma unroll
  for (int step = 0; step < KEPT_STEPS; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[4 * step + i] =
          load_code(codes, row + i % 2 * 8, n, 32 * step + i / 2 * 16 + 4 * quad);
}

// The last coordinates of a warpgroup's queries, as the tensor cores take them from shared memory.
__device__ __forceinline__ void share_queries(u32 to, const u8* codes, int first_row, int n) {
  for (int i = threadIdx.x % 128; i < SHARED_CHUNKS * CHUNK_BYTES / 4; i += 128) {
    const int chunk = i / (CHUNK_BYTES / 4), local = i / 32 % 64, word = i % 32;
    const u32 code = load_code(codes, first_row + local, n, 32 * KEPT_STEPS + 128 * chunk + 4 * word);
    const u32 at = to + chunk * CHUNK_BYTES + 128 * local + ((word / 4 ^ local % 8) * 16) +
                   word % 4 * 4;
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(code) : "memory");
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Multiply ROWS queries with some tiles. Warpgroups take 64 queries each, and one's scores are looked
// at while the others' are multiplied. `expect` is called before a tile's scores are there.
template <class Expect, class Look>
__device__ __forceinline__ void run_product(const u8* query_codes, const float* query_alpha, int n,
                                            int first_row, const Entries& entries, const Layout& at,
                                            Expect expect, Look look) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp / 4, quad = lane % 4;
  const int local = 16 * warp + lane / 4;
  const int row = first_row + local;
  u32 a[4 * KEPT_STEPS + 4];
  load_queries(a, query_codes, row, n, quad);
  const u32 queries_at = at.queries + group * SHARED_CHUNKS * CHUNK_BYTES;
  if (SHARED_CHUNKS) {
    share_queries(queries_at, query_codes, first_row + 64 * group, n);
    group_wait(1 + group);
  }
  const float alpha = row < n ? query_alpha[row] : 0.0f;
  const float alpha_8 = row + 8 < n ? query_alpha[row + 8] : 0.0f;
  for (int i = 0; i < entries.tiles; ++i) {
    const int stage = i % STAGES;
    barrier_wait(at.full + 8 * stage, (i / STAGES) & 1);
    const u32 beside = at.beside + stage * BESIDE_BYTES;
    int acc[SCORES];
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
      const float2 lift = load_pair(beside + 8 * quad + 32 * j);
      acc[4 * j] = __float_as_int(__fmaf_rn(alpha, lift.x, ZERO_SCORE));
      acc[4 * j + 1] = __float_as_int(__fmaf_rn(alpha, lift.y, ZERO_SCORE));
      acc[4 * j + 2] = __float_as_int(__fmaf_rn(alpha_8, lift.x, ZERO_SCORE));
      acc[4 * j + 3] = __float_as_int(__fmaf_rn(alpha_8, lift.y, ZERO_SCORE));
    }
    products_begin(acc);
    const u32 tile_at = at.stages + stage * TILE_BYTES;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const u64 b = matrix_descriptor(tile_at + step / 4 * (TILE * 128) + step % 4 * 32);
      if (step < KEPT_STEPS)
        multiply(acc, a + 4 * step, b);
      else
        multiply_shared(acc,
                        matrix_descriptor(queries_at + (step - KEPT_STEPS) / 4 * CHUNK_BYTES +
                                          step % 4 * 32),
                        b);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    expect(load_facts(beside + 4 * TILE), local);
    products_end(acc);
    if (lane == 0) release_tile(at, entries, i);
    const int first_entry = (entries.first + i) * TILE;
    if (first_entry + TILE > entries.size) {  // what is behind the last entry is nobody's
#pragma unroll
      for (int j = 0; j < SCORES; ++j)
        if (first_entry + j / 4 * 8 + 2 * quad + j % 2 >= entries.size) acc[j] = NOTHING;
    }
    look(acc, first_entry, local);
  }
}

// The first tiles, on their way.
__device__ __forceinline__ void begin_tiles(const Layout& at, const Entries& entries) {
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(at.full + 8 * stage, 1);
      at.used[stage] = 0;
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int i = 0; i < min(STAGES, entries.tiles); ++i) bring_tile(at, entries, i);
  }
}

// Write the best lower bound of every block of a sample: (n, blocks).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    best_kernel(const u8* query_codes, const float* query_alpha, const float* per_norm,
                const float* per_residual, const float* slack, const u8* codes, const float* lifts,
                const Facts* facts, float* lower, int n, int size, int tiles, int row_tiles,
                int share) {
  extern __shared__ u8 memory[];
  const Layout at = layout_of(memory);
  const int first_row = blockIdx.x % row_tiles * ROWS, first = blockIdx.x / row_tiles * share;
  const Entries entries = {codes, lifts, facts, size, first, min(share, tiles - first)};
  begin_tiles(at, entries);
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const int row = min(first_row + i, n - 1);
    at.row_facts[4 * i] = 4.0f * slack[row];
    at.row_facts[4 * i + 1] = per_norm[row];
    at.row_facts[4 * i + 2] = per_residual[row];
  }
  __syncthreads();
  const int blocks = tiles * LANES * SPLIT;
  const int quad = threadIdx.x % LANES;
  float step, bound[2];
  run_product(
      query_codes, query_alpha, n, first_row, entries, at,
      [&](const Facts& shared, int local) {
        step = shared.step;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* facts_of = at.row_facts + 4 * (local + 8 * half);
          bound[half] = facts_of[1] * shared.norm + facts_of[2] * shared.residual + facts_of[0];
        }
      },
      [&](int(&acc)[SCORES], int first_entry, int local) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first_row + local + 8 * half;
          float* to = lower + (long long)row * blocks +
                      (first_entry / TILE * LANES + quad) * SPLIT;
#pragma unroll
          for (int part = 0; part < SPLIT; ++part) {
            int most = NOTHING;
#pragma unroll
            for (int j = TILE / 8 / SPLIT * part; j < TILE / 8 / SPLIT * (part + 1); ++j)
              most = max(most, max(acc[4 * j + 2 * half], acc[4 * j + 2 * half + 1]));
            const float score = (float)(most - ZERO_KEY) - UNROUNDED;
            if (row < n) to[part] = most == NOTHING ? -INFINITE : score * step - bound[half];
          }
        }
      });
}

// Write a score that reaches `least` behind those that are written; without a branch, since threads
// of a warp differ.
__device__ __forceinline__ void note_hit(Record* list, int& filled, int room, int key, int least,
                                         int place) {
  asm volatile(
      "{\n.reg .pred hit, kept;\n.reg .b64 to;\n"
      "setp.ge.s32 hit, %1, %2;\n"
      "setp.lt.and.s32 kept, %0, %3, hit;\n"
      "mad.wide.s32 to, %0, 8, %4;\n"
      "@kept st.global.v2.s32 [to], {%5, %1};\n"
      "@hit add.s32 %0, %0, 1;\n}\n"
      : "+r"(filled)
      : "r"(key), "r"(least), "r"(room), "l"(list), "r"(place)
      : "memory");
}

// Write the entries whose upper bounds reach their query's threshold. For every query, each of the
// four threads that look at its scores in each part of the entries has a list of its own:
// (n, parts, 4, room). All are counted, and kept as far as there is room.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    hits_kernel(const u8* query_codes, const float* query_alpha, const float* per_norm,
                const float* per_residual, const float* slack, const u8* codes, const float* lifts,
                const Facts* facts, const float* threshold, int* counts, Record* found, int n,
                int size, int tiles, int row_tiles, int share, int parts, int room) {
  extern __shared__ u8 memory[];
  const Layout at = layout_of(memory);
  const int part = blockIdx.x / row_tiles, first = part * share;
  const int first_row = blockIdx.x % row_tiles * ROWS;
  const Entries entries = {codes, lifts, facts, size, first, min(share, tiles - first)};
  begin_tiles(at, entries);
  for (int i = threadIdx.x; i < ROWS; i += THREADS) {
    const int row = min(first_row + i, n - 1);
    at.row_facts[4 * i] = first_row + i < n ? threshold[row] - 4.0f * slack[row] : INFINITE;
    at.row_facts[4 * i + 1] = per_norm[row];
    at.row_facts[4 * i + 2] = per_residual[row];
  }
  __syncthreads();
  const int quad = threadIdx.x % LANES;
  const int mine = 16 * (threadIdx.x / 32) + threadIdx.x % 32 / 4;
  const long long list = ((long long)(first_row + mine) * parts + part) * LANES + quad;
  const long long list_8 = list + 8ll * parts * LANES;
  Record* to[2] = {found + list * room, found + list_8 * room};
  int filled[2] = {0, 0}, least[2];
  run_product(
      query_codes, query_alpha, n, first_row, entries, at,
      [&](const Facts& shared, int local) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* facts_of = at.row_facts + 4 * (local + 8 * half);
          const float bound = facts_of[1] * shared.norm + facts_of[2] * shared.residual;
          float lowest = (facts_of[0] - bound) * shared.per_step;
          lowest = fminf(fmaxf(lowest, -0x1p30f), 0x1p29f);
          lowest -= UNROUNDED + 2.0f + fabsf(lowest) * 0x1p-21f;
          least[half] = ZERO_KEY + __float2int_rd(lowest);
        }
      },
      [&](int(&acc)[SCORES], int first_entry, int local) {
        const int first_place = first_entry + 2 * quad;
#pragma unroll
        for (int j = 0; j < SCORES; j += AT_ONCE) {
          bool any = false;
#pragma unroll
          for (int i = j; i < j + AT_ONCE; ++i) any |= acc[i] >= least[i / 2 % 2];
          if (any) {
#pragma unroll
            for (int i = j; i < j + AT_ONCE; ++i) {
              const int half = i / 2 % 2;
              note_hit(to[half], filled[half], room, acc[i], least[half],
                       first_place + i / 4 * 8 + i % 2);
            }
          }
        }
      });
  if (first_row + mine < n) counts[list] = filled[0];
  if (first_row + mine + 8 < n) counts[list_8] = filled[1];
}

// ---- thresholds and ranks: a warp a query ----------------------------------------------------

#define ALL 0xFFFFFFFFu
#define HALVINGS 13

template <class Number, class Join>
__device__ __forceinline__ Number across(Number value, Join join) {
#pragma unroll
  for (int mask = 16; mask; mask /= 2) value = join(value, __shfl_xor_sync(ALL, value, mask));
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
  return across(value, [](float a, float b) { return fmaxf(a, b); });
}

__device__ __forceinline__ double warp_sum(double value) {
  return across(value, [](double a, double b) { return a + b; });
}

// A number that k of some values reach, close to the k-th largest; minus infinity where fewer than
// k are larger than that.
__device__ __forceinline__ float kth_largest(const float* values, int count, int k, int lane) {
  float low = INFINITE, high = -INFINITE;
  int known = 0;
  for (int i = lane; i < count; i += 32) {
    const float value = values[i];
    if (value > -INFINITE) low = fminf(low, value), ++known;
    high = fmaxf(high, value);
  }
  if ((int)__reduce_add_sync(ALL, known) < k) return -INFINITE;
  low = -warp_max(-low);
  high = warp_max(high);
#pragma unroll 1
  for (int i = 0; i < HALVINGS; ++i) {
    const float middle = 0.5f * low + 0.5f * high;
    int reached = 0;
    for (int j = lane; j < count; j += 32) reached += values[j] >= middle;
    if ((int)__reduce_add_sync(ALL, reached) >= k)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The k-th largest of every query's lower bounds (n, blocks): k entries reach it.
extern "C" __global__ void threshold_kernel(const float* lower, float* threshold, int n, int blocks,
                                            int k) {
  extern __shared__ __align__(16) u8 memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long long row = (long long)blockIdx.x * (blockDim.x / 32) + warp;
  if (row >= n) return;
  float* mine = (float*)memory + warp * blocks;
  for (int i = lane; i < blocks; i += 32) mine[i] = lower[row * blocks + i];
  __syncwarp();
  const float least = kth_largest(mine, blocks, k, lane);
  if (lane == 0) threshold[row] = least;
}

#if ENTRY_KIND == 0
#define ENTRY_BYTES 2
typedef float Number;
#elif ENTRY_KIND == 1
#define ENTRY_BYTES 4
typedef float Number;
#else
#define ENTRY_BYTES 8
typedef double Number;
#endif
#if DIM * ENTRY_BYTES % 16 == 0
#define VECTOR (16 / ENTRY_BYTES)  // coordinates that are loaded at once
#else
#define VECTOR 1
#endif
#define LOADS ((DIM + 32 * VECTOR - 1) / (32 * VECTOR))
#define PAIRS 4  // candidates that are rescored beside each other

__device__ __forceinline__ float half_to_float(unsigned short half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

template <int KIND>
__device__ __forceinline__ double coordinate(const void* rows, long long at) {
  if (KIND == 0) return half_to_float(((const unsigned short*)rows)[at]);
  if (KIND == 1) return ((const float*)rows)[at];
  return ((const double*)rows)[at];
}

// A lane's coordinates of an entry, as they are loaded.
struct Piece {
#if VECTOR == 1
  double value;
#else
  uint4 bits;
#endif
};

__device__ __forceinline__ Piece load_piece(const void* entries, long long entry, int load,
                                            int lane) {
  const int first = (32 * load + lane) * VECTOR;
  Piece piece;
#if VECTOR == 1
  piece.value = first < DIM ? coordinate<ENTRY_KIND>(entries, entry * DIM + first) : 0.0;
#else
  piece.bits = make_uint4(0, 0, 0, 0);
  if (first < DIM)
    piece.bits = *(const uint4*)((const u8*)entries + (entry * DIM + first) * ENTRY_BYTES);
#endif
  return piece;
}

// The i-th of a lane's coordinates; in float32 where that holds it.
__device__ __forceinline__ Number number_of(const Piece& piece, int i) {
#if VECTOR == 1
  return (Number)piece.value;
#else
  const u32 words[4] = {piece.bits.x, piece.bits.y, piece.bits.z, piece.bits.w};
#if ENTRY_KIND == 0
  return half_to_float((unsigned short)(words[i / 2] >> (16 * (i % 2))));
#elif ENTRY_KIND == 1
  return __uint_as_float(words[i]);
#else
  return __hiloint2double(words[2 * i + 1], words[2 * i]);
#endif
#endif
}

// A lane's coordinates of a query.
struct Query {
#if QUERY_KIND == ENTRY_KIND
  Piece piece;
  __device__ __forceinline__ Number operator[](int i) const { return number_of(piece, i); }
#else
  double values[VECTOR];
  __device__ __forceinline__ double operator[](int i) const { return values[i]; }
#endif
};

__device__ __forceinline__ Query load_query(const void* queries, long long row, int load, int lane) {
  Query query;
#if QUERY_KIND == ENTRY_KIND && VECTOR > 1
  // Loaded anew every time, from the nearest cache: kept in registers, they would be spilled.
  const int first = (32 * load + lane) * VECTOR;
  const u8* at = (const u8*)queries + (row * DIM + min(first, DIM - VECTOR)) * ENTRY_BYTES;
  uint4& bits = query.piece.bits;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(at));
#elif QUERY_KIND == ENTRY_KIND
  query.piece = load_piece(queries, row, load, lane);
#else
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
    const int at = (32 * load + lane) * VECTOR + i;
    query.values[i] = at < DIM ? coordinate<QUERY_KIND>(queries, row * DIM + at) : 0.0;
  }
#endif
  return query;
}

__device__ __forceinline__ double dot_piece(const Piece& piece, const Query& query, double sum) {
#pragma unroll
  for (int i = 0; i < VECTOR; ++i) {
#if QUERY_KIND == 0 && ENTRY_KIND == 0
    sum += (double)(number_of(piece, i) * query[i]);  // exact: 22 bits
#else
    sum += (double)number_of(piece, i) * (double)query[i];
#endif
  }
  return sum;
}

__device__ __forceinline__ double exchange(double value, int mask) {
  return __shfl_xor_sync(ALL, value, mask);
}

// Float64 products of the chosen candidates; `chosen` is asked once for each.
template <class Chosen>
__device__ __forceinline__ void rescore(const void* queries, long long row, const void* entries,
                                       const int* entry, double* value, int count, int lane,
                                       Chosen chosen) {
  for (int start = 0; start < count; start += 32) {
    u32 wanted = __ballot_sync(ALL, start + lane < count && chosen(start + lane));
    while (wanted) {
      int at[PAIRS];
      double sum[PAIRS];
#pragma unroll
      for (int p = 0; p < PAIRS; ++p) {  // the last one again, where there are no more
        at[p] = wanted ? start + __ffs(wanted) - 1 : at[p ? p - 1 : 0];
        wanted &= wanted - 1;
        sum[p] = 0.0;
      }
#pragma unroll 1
      for (int load = 0; load < LOADS; ++load) {
        const Query query = load_query(queries, row, load, lane);
        Piece piece[PAIRS];
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) piece[p] = load_piece(entries, entry[at[p]], load, lane);
#pragma unroll
        for (int p = 0; p < PAIRS; ++p)
          sum[p] = dot_piece(piece[p], query, sum[p]);
      }
      // Each exchange halves the sums that a lane works on, until it has one of its own.
      int mask = 16;
#pragma unroll
      for (int half = PAIRS / 2; half; half /= 2, mask /= 2) {
        const bool upper = lane & mask;
#pragma unroll
        for (int p = 0; p < half; ++p) {
          const double given = exchange(upper ? sum[p] : sum[p + half], mask);
          sum[p] = (upper ? sum[p + half] : sum[p]) + given;
          at[p] = upper ? at[p + half] : at[p];
        }
      }
#pragma unroll
      for (; mask; mask /= 2) sum[0] += exchange(sum[0], mask);
      if (lane % (32 / PAIRS) == 0) value[at[0]] = sum[0];
    }
  }
  __syncwarp();
}

// Rank the candidates of a query; see DeviceEngine.search for what is promised.
extern "C" __global__ void __launch_bounds__(128, 8)
    rank_kernel(const void* queries, const void* entries, const long long* ids,
                const Facts* facts, const double* mean, const float* threshold,
                const float* per_norm, const float* per_residual, const float* slack,
                const double* unit, const double* error, const u8* zero, const u8* extreme,
                const int* counts, const Record* found, double* values, long long* best, u8* left,
                int* tallies, int n, int k, int parts, int room, int capacity) {
  extern __shared__ __align__(16) u8 memory[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const long long row = (long long)blockIdx.x * (blockDim.x / 32) + warp;
  if (row >= n) return;
  // Lower bounds of records first; then of candidates products, entries and upper bounds; then of
  // results the products.
  float* lower = (float*)(memory + (long long)warp * 16 * capacity);
  double* value = (double*)lower;
  int* entry = (int*)(value + capacity);
  float* upper = (float*)(entry + capacity);
  double* sorted = (double*)upper;
  values += row * k;
  best += row * k;
  if (lane == 0) tallies[2 * row] = tallies[2 * row + 1] = 0;
  if (zero[row]) {
    for (int j = lane; j < k; j += 32) {
      values[j] = 0.0;
      best[j] = j;
    }
    if (lane == 0) left[row] = 0;
    return;
  }
  // A lane knows how many records there are in the four lists of a part, and in those before.
  int ends[LANES] = {0, 0, 0, 0}, listed = 0;
  bool lost = false;
  if (lane < parts) {
    const int4 counted = ((const int4*)counts)[row * parts + lane];
    ends[0] = counted.x, ends[1] = counted.y, ends[2] = counted.z, ends[3] = counted.w;
  }
#pragma unroll
  for (int list = 0; list < LANES; ++list) {
    lost |= ends[list] > room;
    listed += min(ends[list], room);
    ends[list] = listed;
  }
  lost = __any_sync(ALL, lost);
  int before_part = listed;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(ALL, before_part, step);
    if (lane >= step) before_part += before;
  }
  const int total = __shfl_sync(ALL, before_part, 31);
  before_part -= listed;
  if (lost || extreme[row] || total < k || total > 4 * capacity) {
    if (lane == 0) left[row] = 1;
    return;
  }
  const Record* lists = found + row * parts * LANES * room;
  const float norm = per_norm[row], residual = per_residual[row], rounding = 4.0f * slack[row];
  // The i-th record: its place, and the bounds of its score. All lanes ask at the same time.
  struct Bounds { int place; float lower, upper; };
  auto bounds = [&](int i) {
    int part = 0;
    for (int p = 1; p < parts; ++p) part += i >= __shfl_sync(ALL, before_part, p);
    int offset = i - __shfl_sync(ALL, before_part, part), list = 0, start = 0;
#pragma unroll
    for (int l = 0; l < LANES - 1; ++l) {
      const int stop = __shfl_sync(ALL, ends[l], part);
      if (offset >= stop) list = l + 1, start = stop;
    }
    Bounds found_there = {0, -INFINITE, -INFINITE};
    if (i < total) {
      const Record record = lists[(part * LANES + list) * room + offset - start];
      const Facts shared = facts[record.place / UNIT_TILE];
      const float bound = norm * shared.norm + residual * shared.residual + rounding;
      const float score = (float)(record.key - ZERO_KEY);
      found_there.place = record.place;
      found_there.lower = (score - UNROUNDED) * shared.step - bound;
      found_there.upper = (score + UNROUNDED) * shared.step + bound;
    }
    return found_there;
  };
  // Raise the threshold by all that was found, and keep what can still reach it.
  for (int i = 0; i < total; i += 32) {
    const Bounds bound = bounds(i + lane);
    if (i + lane < total) lower[i + lane] = bound.lower;
  }
  __syncwarp();
  const float least = fmaxf(threshold[row], kth_largest(lower, total, k, lane));
  __syncwarp();
  int count = 0;
  for (int i = 0; i < total; i += 32) {
    const Bounds bound = bounds(i + lane);
    const bool there = bound.upper >= least && i + lane < total;
    const u32 mask = __ballot_sync(ALL, there);
    const int slot = count + __popc(mask & ((1u << lane) - 1));
    if (there && slot < capacity) {
      entry[slot] = (int)ids[bound.place];
      upper[slot] = bound.upper;
      value[slot] = -(double)INFINITE;
    }
    count += __popc(mask);
  }
  __syncwarp();
  if (count > capacity || count < k) {
    if (lane == 0) left[row] = 1;
    return;
  }
  double product = 0.0, size_of_it = 0.0;
#pragma unroll
  for (int load = 0; load < LOADS; ++load) {
    const Query query = load_query(queries, row, load, lane);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      const int at = (32 * load + lane) * VECTOR + i;
      const double term = at < DIM ? (double)query[i] * mean[at] : 0.0;
      product += term;
      size_of_it += fabs(term);
    }
  }
  // The most promising first: the others are rescored where they can reach the least of these.
  const float cut = kth_largest(upper, count, k, lane);
  rescore(queries, row, entries, entry, value, count, lane,
                         [&](int i) { return upper[i] >= cut; });
  double reached = INFINITE;
  for (int i = lane; i < count; i += 32)
    if (upper[i] >= cut) reached = fmin(reached, value[i]);
  reached = across(reached, [](double a, double b) { return fmin(a, b); });
  const double bound = error[row], scale = unit[row];
  const double base = warp_sum(product) + bound + warp_sum(size_of_it) * (DIM * 4e-16);
  rescore(queries, row, entries, entry, value, count, lane, [&](int i) {
    return upper[i] < cut && (scale < 1e-290 || base + scale * (double)upper[i] >= reached);
  });
  // Only rescored ones from here on, and every product finds its place by counting those before it.
  int kept = 0;
  for (int start = 0; start < count; start += 32) {
    const int i = start + lane;
    const double mine = i < count ? value[i] : -(double)INFINITE;
    const int its = i < count ? entry[i] : 0;
    const bool there = mine > -(double)INFINITE;
    const u32 mask = __ballot_sync(ALL, there);
    const int slot = kept + __popc(mask & ((1u << lane) - 1));
    if (there) {
      value[slot] = mine;
      entry[slot] = its;
    }
    kept += __popc(mask);
    __syncwarp();
  }
  for (int i = lane; i < kept; i += 32) {
    const double mine = value[i];
    const int its = entry[i];
    int place = 0;
    for (int j = 0; j < kept; ++j) {
      const double other = value[j];
      place += other > mine || (other == mine && entry[j] < its);
    }
    if (place <= k) sorted[place] = mine;
    if (place < k) {
      values[place] = mine + 0.0;
      best[place] = its;
    }
  }
  bool doubt = false;
  if (bound > 0) {
    __syncwarp();
    for (int j = lane; j < k; j += 32) {
      const double mine = sorted[j];
      doubt |= j + 1 < kept && mine - sorted[j + 1] <= 2 * bound;
      doubt |= (float)(mine - bound) != (float)(mine + bound);
    }
    doubt = __any_sync(ALL, doubt);
  }
  if (lane == 0) {
    left[row] = doubt;
    tallies[2 * row] = count;
    tallies[2 * row + 1] = kept;
  }
}
