// What one thread needs to search blocks of queries.
#pragma once

#include "engine.h"

namespace bliss {

double half_to_double(std::uint16_t half);
void read_row(const Rows& rows, std::size_t i, double* out);

// Fetch the first bytes of a row.
inline void prefetch(const Rows& rows, std::size_t i, std::size_t most) {
  const char* const row = static_cast<const char*>(rows.row(i));
  const std::size_t bytes = std::min(most, rows.dim * type_bytes(rows.type));
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

// A query and an entry whose product is wanted, and where it goes.
struct Pair {
  std::uint32_t entry;
  std::uint32_t slot;
  std::uint32_t place;
};

// Panels whose scores are looked at together, where queries look into lists.
constexpr std::size_t kPanelsAtOnce = 6;

class Workspace {
 public:
  explicit Workspace(const Engine& engine);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Search the queries first .. last - 1, at most as many as the room is for. Of every query k entries
  // are known to reach its threshold, where thresholds are given.
  void search(const Room& room, const Engine::Centre& centre, const Rows& queries,
              const Probes* probes, const float* thresholds, std::size_t first, std::size_t last, double* values,
              std::int64_t* ids);
  // The intervals of all pairs with the queries first .. last - 1, (last - first) x entries; they
  // hold <x, t - mean of the entries>, or <x, t> of entries in lists. Of queries without a direction
  // nothing is written.
  void intervals(const Room& room, const Engine::Centre& centre, const Rows& queries,
                 std::size_t first, std::size_t last, double* lower, double* upper);
  void score_only(const Room& room, const Engine::Centre& centre);
  // Hand over what was counted, the rows that hold NaN or infinity, and those that need more room.
  void report(Counts& counts, std::vector<std::int64_t>& bad, std::vector<Unsettled>& left);

 private:
  enum class State { searched, overflowed, zero, bad };
  struct Query {
    State state;
    int exponent;
    double norm;      // |query| * 2^-exponent, from above
    double shift;     // what is missing in the ends: <query * 2^-exponent, mean>, in float32
    double shift_error;
    double scale;     // of a product of scaled vectors, over that of the vectors as given
    double error64;   // of a float64 product of the vectors as given, per scaled |entry|
    float threshold;  // k-th best lower end so far, without the test's margin
  };

  void enter(const Room& room);
  void begin(const Engine::Centre& centre, const Rows& queries, const float* thresholds,
             std::size_t first, std::size_t last);
  void lay_out(std::uint8_t* codes, std::size_t slot, const std::uint8_t* from) const;
  void make_gathered();
  void scan(const Engine::Centre& centre);
  void scan_lists(const Engine::Centre& centre, std::size_t count);
  void scan_list(const Engine::Centre& centre, std::size_t list, const std::uint32_t* slots,
                 std::size_t count);
  // Bring the codes and numbers of some queries together; candidates found of them go to their rows.
  void gather(std::size_t list, const std::uint32_t* slots, std::size_t count);
  float product_with(const float* centre, std::size_t slot);
  void scatter(const std::uint32_t* slots, std::size_t count, std::uint32_t begin, std::uint32_t end);
  void select(std::size_t slot);
  void overflow(std::size_t slot);
  void best_first(std::size_t slot);
  void arrange(std::size_t slot, std::size_t row);
  // The rest, of all queries of a block, in rescoring.cpp.
  void finish(const Rows& queries, double* values, std::int64_t* ids);
  void rescore(const Rows& queries, std::size_t from, std::size_t to);
  std::size_t pairs_left(std::size_t from, std::size_t to, Pair* pairs);
  void evaluate(const Rows& queries, Pair* pairs, std::size_t count, bool exclude);
  const double* wide_row(const Rows& rows, std::size_t i);
  const float* narrow_row(const Rows& rows, std::size_t i, int exponent);
  void prefetch_next();
  const Pair* group_by_entry(Pair* pairs, std::size_t count);
  void search_all(const Rows& queries, std::size_t slot);
  void keep_reachable(std::vector<Candidate>& all);

  // Queries that look into the same list, side by side.
  struct Gathered {
    std::vector<std::uint8_t> code_storage;
    std::uint8_t* codes = nullptr;
    AlignedVector<float> numbers;
    std::vector<float> shift, margin;  // <query, centre of the list>, and what that may be wrong by
    std::vector<std::uint32_t> counts, rows;
    Block block{};
    std::vector<std::uint32_t> slots, starts;  // of the queries of each list
    // What a score must reach without the shift, with room for what is wrong and the roundings here.
    float threshold(std::size_t i, float whole) const { return whole - (shift[i] + 2 * margin[i]); }
  };

  const Engine& engine_;
  const Room* room_;
  const Probes* probes_ = nullptr;
  Rows searched_{};        // all queries, where they look into lists
  std::size_t first_ = 0;  // the first query of the block
  Gathered gathered_;
  Block block_{};
  std::vector<Query> queries_;
  std::vector<std::uint8_t> code_storage_;
  std::uint8_t* codes_;  // aligned to a cache line
  AlignedVector<float> step_, alpha_, threshold_, per_norm_, per_residual_, slack_;
  std::vector<std::uint32_t> candidates_, trigger_, due_;
  // Ids, lower and upper ends: a row of each for every query, of which little is ever touched.
  LargeArray<std::uint32_t> rows_;
  std::uint32_t* ids_;
  float* lower_;
  float* upper_;
  AlignedVector<float> x32_, work_;
  AlignedVector<std::uint8_t> code_;
  AlignedVector<double> wide_;
  std::vector<double> x64_, t64_, bounds_;
  std::vector<double> least_;  // of a query's k best, the least lower end
  // The candidates that are rescored together, query by query, and pairs to be evaluated.
  std::vector<std::uint32_t> starts_;
  LargeArray<Pair> pairs_;
  LargeArray<Candidate> found_;
  std::vector<std::uint32_t> places_;  // of each entry's pairs
  std::vector<Candidate> all_;         // of a query that is searched in full
  const std::uint32_t* next_ = nullptr;  // ids of the next query's likely results
  std::size_t next_count_ = 0;
  bool by_entry_ = false;  // whether pairs are evaluated entry by entry
  const void* exact_query_ = nullptr;
  Type exact_type_ = Type::float32;
  bool rounded_ = false;           // queries are float64, which float32 does not hold
  double error32_ = 0;             // of a float32 dot product, per |query| |entry|
  std::function<double(std::uint32_t)> exact_;
  Counts counts_;
  std::vector<std::int64_t> bad_;
  std::vector<Unsettled> left_;
};

}  // namespace bliss
