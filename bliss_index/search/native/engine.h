// A packed vocabulary and the search over it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "kernel.h"
#include "large_array.h"
#include "ordering.h"

namespace bliss {

struct Counts {
  std::uint64_t candidates = 0;  // rescored in float32, or in float64 where the entries are float64
  std::uint64_t rescored = 0;    // evaluated in float64
  std::uint64_t resolved = 0;    // evaluated exactly
  std::uint64_t full_rows = 0;   // searched in full
  std::uint64_t second_rows = 0;  // searched a second time, with more room
  void add(const Counts& other);
};

// Rows that the engine does not own: those of one array, or each at an address of its own.
struct Rows {
  const void* data;
  Type type;
  std::size_t count;
  std::size_t dim;
  const void* const* addresses = nullptr;  // of all rows; `data` is then none
  const void* row(std::size_t i) const {
    if (addresses) return addresses[i];
    return static_cast<const char*>(data) + i * dim * type_bytes(type);
  }
  Rows part(std::size_t first, std::size_t size) const {
    if (addresses) return {nullptr, type, size, dim, addresses + first};
    return {row(first), type, size, dim};
  }
};

struct Tuning {
  std::size_t query_block = 0;     // queries that one thread works on at a time; 0: the kernel's
  std::size_t capacity = 0;       // candidates kept per query, and 8 k more; 0: by the vocabulary
  std::size_t first_trigger = 64;  // candidates before the first selection; 2 k at least
};

// Run body(index, worker) for every index on `threads` threads. `idle` is called on the calling
// thread now and then; when it returns false, no further index is begun. Returns false then.
bool for_each_index(std::size_t count, std::size_t threads, const std::function<bool()>& idle,
                    const std::function<void(std::size_t, std::size_t)>& body);

// An engine that was not finished, because `idle` asked to stop.
struct Interrupted {};

// The room that a thread has for candidates, shared out among the queries of a block.
struct Room {
  std::size_t queries;   // of a block
  std::size_t capacity;  // candidates of a query
  std::size_t stride;    // with room for one panel's and for a full vector after the last
  bool last;             // a query that needs more is searched in full, at once
};

// What is packed of a vocabulary, in one piece of memory: the engine's own, or a file that was made
// of one. Numbers are in the machine's order. Every part starts at a cache line.
struct Packed {
  // Another number for every change of what kernels pack, so that nothing else is taken for it.
  static constexpr int kVersion = 1;
  static constexpr int kListsVersion = 2;  // of entries in lists
  struct Facts {
    std::int64_t exponent;  // entries times 2^-exponent have magnitudes of at most 1
    double mean_norm;
    Bound largest;
  };
  Packed(std::size_t entries, std::size_t dim, const Layout& layout);
  void set_base(char* base);

  std::size_t bytes = 0;
  std::int8_t* codes = nullptr;
  std::int32_t* correction = nullptr;
  float* step = nullptr;
  float* centred_norm = nullptr;  // of the entries, from above
  float* residual = nullptr;
  Bound* panel_bounds = nullptr;
  float* norms = nullptr;         // |entry| * 2^-exponent, from above
  double* mean = nullptr;         // of the scaled entries
  Facts* facts = nullptr;

 private:
  std::size_t offsets_[9];
};

// Entries that lie near each other are a list: the rows starts[l] to starts[l + 1] - 1. They are
// packed as what they differ from their list's centre, which is less than from the mean of all.
struct Lists {
  std::size_t count;
  const std::uint32_t* starts;  // count + 1
  const std::uint32_t* ids;     // what the rows are called in results
  const float* centres;         // a row of `stride` floats each, of which the first dim are used
  std::size_t stride;
};

// A query looks into some of the lists only, `each` of them, numbered in ascending order.
struct Probes {
  const std::uint32_t* probed;  // (queries x each)
  std::size_t each;
  const std::uint32_t* of(std::size_t query) const { return probed + query * each; }
};

// A query that had too little room, and a lower end that k entries reach.
struct Unsettled {
  std::size_t row;
  float threshold;
};

class Workspace;

class Engine {
 public:
  // `entries` must outlive the engine. Throws Interrupted when `idle` asked to stop.
  // Numbers: finite; float32 within [2^-60, 2^60] at the largest.
  // `prepared`, where there is one, is what packed() of an engine of these entries and this kernel
  // held; it starts at a cache line and outlives the engine, too.
  // `lists`, where there are any, make an engine for queries that look into some of these; their
  // numbers and ids outlive it as well, their centres are copied.
  Engine(Rows entries, std::size_t k, const Kernel& kernel, std::size_t threads, Tuning tuning,
         const std::function<bool()>& idle, const char* prepared = nullptr,
         const Lists* lists = nullptr);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Take `centre` (dim floats) away from queries, each scaled to fit. Changes speed, never results.
  // Returns false, and has changed nothing, when `idle` asked to stop.
  bool set_query_centre(const float* centre, std::size_t threads,
                        const std::function<bool()>& idle);

  // Fill values and ids (count x k). Rows with NaN or infinity are appended to `bad` instead.
  // Of entries in lists, a query finds the best of those that it looks into; any such lists together
  // have k entries, or std::invalid_argument is thrown.
  bool search(const Rows& queries, const Probes* probes, std::size_t threads,
              const std::function<bool()>& idle, double* values, std::int64_t* ids, Counts& counts,
              std::vector<std::int64_t>& bad);

  // Fill lower and upper (count x entries): the interval that the integer pass gives every pair, of
  // <x, t - mean of the entries>, or of <x, t> of entries in lists. False if the engine has not the
  // capacity for all entries.
  bool intervals(const Rows& queries, double* lower, double* upper);

  // Seconds that the integer kernel alone takes for `count` queries, with a test nothing passes.
  double kernel_seconds(std::size_t count, std::size_t threads);

  // Of the packed entries, and of the workspaces of one call. Calls at the same time have their own.
  std::size_t memory_bytes(std::size_t threads) const;
  std::size_t query_block() const { return rooms_.front().queries; }
  const Kernel& kernel() const { return kernel_; }
  const char* packed() const { return reinterpret_cast<const char*>(packed_.codes); }
  std::size_t packed_bytes() const { return packed_.bytes; }

 private:
  friend class Workspace;
  struct Centre {
    AlignedVector<float> vector;  // padded to 16
    AlignedVector<float> bias;    // per entry
    float square = 0;
    float largest_bias = 0;
  };

  using Workspaces = std::vector<std::unique_ptr<Workspace>>;
  std::unique_ptr<Workspace> take_workspace();
  void give_back(Workspaces& workspaces, std::size_t most);
  void make_rooms(const Tuning& tuning);
  // Search blocks of the queries; thresholds, where there are any, say what k entries reach.
  bool search_blocks(const Room& room, const Centre& centre, const Rows& queries,
                     const Probes* probes, const float* thresholds,
                     const std::function<bool()>& idle, Workspaces& workspaces, double* values,
                     std::int64_t* ids);
  bool search_again(const Centre& centre, const Rows& queries, const Probes* probes,
                    std::vector<Unsettled>& left, const std::function<bool()>& idle,
                    Workspaces& workspaces, double* values, std::int64_t* ids);
  std::uint32_t id_of(std::size_t row) const {
    return lists_.count ? lists_.ids[row] : std::uint32_t(row);
  }
  // The list that a row is of, where all before `from` are of earlier ones.
  std::size_t list_of(std::size_t row, std::size_t from) const {
    while (lists_.starts[from + 1] <= row) ++from;
    return from;
  }
  std::size_t list_of(std::size_t row) const;
  void take_lists();
  const float* list_centre(std::size_t list) const { return list_centres_.data() + list * padded_; }
  void set_rotation();
  // Largest magnitude of so many entries, and the sum of each coordinate.
  void measure(std::size_t first, std::size_t count, double* largest, double* sums) const;
  void pack(std::size_t threads, const std::function<bool()>& idle);
  void pack_panel(std::size_t panel, float* work, std::int8_t* codes);
  Panel panel(std::size_t index, std::size_t next, const Centre& centre) const;
  // Candidates of all queries of a block, in any room.
  std::size_t most_candidates() const;
  // Pairs of queries and entries that are rescored together; entries that such pairs are grouped by.
  std::size_t most_pairs() const { return std::max<std::size_t>(32768, rooms_.back().capacity); }
  std::size_t most_grouped() const { return std::min(entries_.count, most_pairs()); }
  const std::int8_t* codes_of(std::size_t panel) const { return packed_.codes + panel * panel_bytes_; }

  Rows entries_;
  Lists lists_{};
  const Kernel& kernel_;
  const Layout layout_;
  std::size_t k_, dim_;
  std::size_t padded_;       // dim in whole vectors
  std::size_t steps_;        // of the kernel
  std::size_t panels_, panel_bytes_, stride_;
  std::vector<Room> rooms_;  // one, or a second with more room for fewer queries
  std::size_t first_trigger_;
  Packed packed_;
  LargeArray<char> storage_;  // of what is packed; none where it was prepared before
  double inverse_scale_ = 1;  // 2^-exponent
  AlignedVector<float> mean32_;
  AlignedVector<float> list_centres_;  // scaled as the entries are, padded
  std::vector<float> list_norms_;      // of these, from above
  double largest_centre_ = 0;          // what was taken away from entries, from above
  AlignedVector<float> signs_;
  Rotation rotation_{};
  std::shared_ptr<const Centre> centre_;
  std::mutex workspaces_mutex_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // not in use
};

}  // namespace bliss
