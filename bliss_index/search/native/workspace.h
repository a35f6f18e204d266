// What one thread needs to search blocks of queries.
#pragma once

#include "engine.h"

namespace bliss {

double half_to_double(std::uint16_t half);
void read_row(const Rows& rows, std::size_t i, double* out);

class Workspace {
 public:
  explicit Workspace(const Engine& engine);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  // Search the queries first .. last - 1, at most the engine's block of them.
  void search(const Engine::Centre& centre, const Rows& queries, std::size_t first,
              std::size_t last, double* values, std::int64_t* ids);
  void score_only(const Engine::Centre& centre);
  // Hand over what was counted, and the rows that hold NaN or infinity.
  void report(Counts& counts, std::vector<std::int64_t>& bad);

 private:
  enum class State { searched, overflowed, zero, bad };
  struct Query {
    State state;
    int exponent;
    double norm;      // |query| * 2^-exponent, from above
    float threshold;  // k-th best lower end so far, without the test's margin
  };

  void begin(const Engine::Centre& centre, const Rows& queries, std::size_t first,
             std::size_t last);
  void scan(const Engine::Centre& centre);
  void select(std::size_t slot);
  void arrange(std::size_t slot);
  void finish(const Rows& queries, std::size_t row, std::size_t slot, double* values,
              std::int64_t* ids);
  void rescore_candidates(const float* x, std::size_t slot, double norm, double scale,
                          double error64);
  void rescore_everything(const float* x, const Query& query, double error64);
  void keep_reachable();
  Candidate rescore32(const float* x, std::uint32_t id, double norm) const;
  Candidate rescore64(std::uint32_t id, double error64);
  void prefetch_next();

  const Engine& engine_;
  Block block_{};
  std::vector<Query> queries_;
  std::vector<std::uint8_t> code_storage_;
  std::uint8_t* codes_;  // aligned to a cache line
  std::vector<float> step_, alpha_, threshold_, per_norm_, per_residual_, slack_;
  std::vector<std::uint32_t> candidates_, trigger_, due_;
  // Ids, lower and upper ends: a row of each for every query, of which little is ever touched.
  LargeArray<std::uint32_t> rows_;
  std::uint32_t* ids_;
  float* lower_;
  float* upper_;
  std::vector<float> x32_, work_;
  std::vector<std::uint8_t> code_;
  std::vector<double> x64_, t64_, bounds_;
  std::vector<Candidate> found_;
  const std::uint32_t* next_ = nullptr;  // ids of the next query's likely results
  std::size_t next_count_ = 0;
  bool rounded_ = false;           // queries are float64, which float32 does not hold
  double error32_ = 0;             // of a float32 dot product, per |query| |entry|
  std::function<double(std::uint32_t)> exact_;
  Counts counts_;
  std::vector<std::int64_t> bad_;
};

}  // namespace bliss
