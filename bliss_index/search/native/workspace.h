// What one thread needs to search blocks of queries.
#pragma once

#include "engine.h"

namespace bliss {

double half_to_double(std::uint16_t half);
void read_row(const Rows& rows, std::size_t i, double* out);

class Workspace {
 public:
  Workspace(const Engine& engine, const Engine::Centre& centre, std::size_t query_block);
  void search(const Rows& queries, std::size_t first, std::size_t last, double* values,
              std::int64_t* ids);
  void score_only();
  const Counts& counts() const { return counts_; }
  const std::vector<std::int64_t>& bad() const { return bad_; }

 private:
  enum class State { searched, overflowed, zero, bad };
  struct Query {
    State state;
    int exponent;
    double norm;      // |query| * 2^-exponent, from above
    double slack;     // rounding of the scores themselves, from above
    float threshold;  // k-th best lower bound so far, without the test's margin
  };

  void begin(const Rows& queries, std::size_t first, std::size_t last);
  void scan();
  void select(std::size_t slot);
  void arrange(std::size_t slot, std::vector<std::uint32_t>& order);
  void finish(const Rows& queries, std::size_t row, std::size_t slot, double* values,
              std::int64_t* ids, std::vector<std::uint32_t>& order, const std::uint32_t* next,
              std::size_t next_count);
  void rescore_candidates(std::size_t slot, bool rounded, const std::vector<std::uint32_t>& order,
                          const std::uint32_t* next, std::size_t next_count);
  void rescore_everything(double norm, bool rounded);
  void keep_reachable();
  double bound(std::size_t slot, std::uint32_t id) const;
  float dot32(std::uint32_t id) const;
  double dot64(std::uint32_t id) const;
  void prefetch(std::uint32_t id) const;

  const Engine& engine_;
  const Engine::Centre& centre_;
  Block block_{};
  std::vector<Query> queries_;
  std::vector<std::uint8_t> code_storage_;
  std::uint8_t* codes_;  // aligned to a cache line
  std::vector<float> step_, alpha_, threshold_, per_norm_, per_residual_;
  std::vector<std::uint32_t> candidates_, trigger_, due_, ids_;
  std::vector<float> scores_;
  std::vector<float> lower_, upper_, x32_, work_;
  std::vector<std::uint8_t> code_;
  std::vector<double> x64_, t64_, bounds_;
  std::vector<std::uint32_t> orders_[2];  // candidates of this query and the next, best first
  std::vector<std::uint32_t> upcoming_;   // ids of the next query's likely results
  std::vector<Candidate> found_;
  double error32_ = 0;  // of a float32 dot product, per |query| |entry|
  Counts counts_;
  std::vector<std::int64_t> bad_;
};

}  // namespace bliss
