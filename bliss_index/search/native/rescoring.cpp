// From the candidates of the integer pass to the result: products in float64, and their order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "workspace.h"

namespace bliss {
namespace {

constexpr float kExcluded = -std::numeric_limits<float>::infinity();
constexpr std::size_t kPairsAnEntry = 4;  // from which on its row is worth widening once for all
constexpr std::size_t kAhead = 2;  // pairs whose rows are fetched before they are needed
constexpr std::size_t kFirst = 512, kWhole = 4096;  // bytes of a row; the processor guesses the rest

double dot64(const Kernel& kernel, const double* wide, const Rows& rows, std::size_t i) {
  switch (rows.type) {
    case Type::float16:
      return kernel.dot64_f16(wide, static_cast<const std::uint16_t*>(rows.row(i)), rows.dim);
    case Type::float32:
      return kernel.dot64_f32(wide, static_cast<const float*>(rows.row(i)), rows.dim);
    case Type::float64: break;
  }
  return kernel.dot64_f64(wide, static_cast<const double*>(rows.row(i)), rows.dim);
}

float dot32(const Kernel& kernel, const float* x, const Rows& rows, std::size_t i) {
  return rows.type == Type::float16
             ? kernel.dot32_f16(x, static_cast<const std::uint16_t*>(rows.row(i)), rows.dim)
             : kernel.dot32_f32(x, static_cast<const float*>(rows.row(i)), rows.dim);
}

}  // namespace

// Where there are several pairs of every entry, many queries at a time, for as many candidates as there
// is room; else one by one.
void Workspace::finish(const Rows& queries, double* values, std::int64_t* ids) {
  const std::size_t k = engine_.k_, most = engine_.most_pairs(), size = engine_.entries_.count;
  by_entry_ = size <= engine_.most_grouped() && std::min(queries.count * k, most) >= kPairsAnEntry * size;
  for (std::size_t from = 0, to = 0; from < queries.count; from = to) {
    std::size_t pairs = candidates_[to++];
    for (; by_entry_ && to < queries.count && pairs + candidates_[to] <= most; ++to)
      pairs += candidates_[to];
    if (to < queries.count) {
      next_ = ids_ + to * block_.stride;
      next_count_ = by_entry_ ? 0 : std::min<std::size_t>(candidates_[to], 2 * k);
      if (!by_entry_ && to + 1 < queries.count) prefetch(queries, to + 1, kWhole);
    }
    rescore(queries, from, to);
    for (std::size_t slot = from; slot < to; ++slot) {
      const State state = queries_[slot].state;
      double* const value = values + slot * k;
      std::int64_t* const id = ids + slot * k;
      if (state == State::bad || state == State::zero) {
        for (std::size_t i = 0; i < k; ++i) value[i] = 0.0, id[i] = std::int64_t(i);
        continue;
      }
      Candidate* found = found_.get() + starts_[slot - from];
      std::size_t count = candidates_[slot];
      if (state == State::overflowed && !room_->last) continue;
      if (state == State::overflowed) {
        search_all(queries, slot);
        found = all_.data();
        count = all_.size();
      }
      exact_query_ = queries.row(slot);
      exact_type_ = queries.type;
      counts_.resolved += order_candidates(found, count, k, engine_.kernel_.rank, exact_);
      for (std::size_t i = 0; i < k; ++i) {
        value[i] = found[i].value;
        id[i] = std::int64_t(found[i].id);
      }
    }
  }
}

// The k best scores in float64 at once. The other candidates only where their upper ends reach the
// least of these, and, if entries are narrower, where float32 cannot exclude them either.
void Workspace::rescore(const Rows& queries, std::size_t from, std::size_t to) {
  const std::size_t k = engine_.k_;
  Pair* const pairs = pairs_.get();
  std::size_t count = 0, start = 0;
  for (std::size_t slot = from; slot < to; ++slot) {
    starts_[slot - from] = std::uint32_t(start);
    if (queries_[slot].state != State::searched) continue;
    const std::uint32_t* const ids = ids_ + slot * block_.stride;
    for (std::size_t i = 0; i < k; ++i)
      pairs[count++] = {ids[i], std::uint32_t(slot), std::uint32_t(start + i)};
    start += candidates_[slot];
  }
  counts_.candidates += count;
  evaluate(queries, pairs, count, false);
  count = pairs_left(from, to, pairs);
  counts_.candidates += count;
  evaluate(queries, pairs, count, engine_.entries_.type != Type::float64);
  for (std::size_t slot = from; slot < to; ++slot) {
    if (queries_[slot].state != State::searched) continue;
    Candidate* const found = found_.get() + starts_[slot - from];
    std::uint32_t kept = std::uint32_t(k);
    for (std::size_t i = k; i < candidates_[slot]; ++i)
      if (found[i].value != double(kExcluded)) found[kept++] = found[i];
    candidates_[slot] = kept;
  }
}

// The candidates beyond the k first that can still be among the best; candidates_ tells how many.
std::size_t Workspace::pairs_left(std::size_t from, std::size_t to, Pair* pairs) {
  const std::size_t k = engine_.k_;
  std::size_t total = 0;
  for (std::size_t slot = from; slot < to; ++slot) {
    const Query& query = queries_[slot];
    const std::size_t count = candidates_[slot], start = starts_[slot - from];
    if (query.state != State::searched || count <= k) continue;
    double least = std::numeric_limits<double>::infinity();
    for (std::size_t i = start; i < start + k; ++i)
      least = std::min(least, found_[i].value - found_[i].error);
    least *= query.scale;
    least_[slot] = least;
    // What centring took away is the same for all entries: <query, mean of the entries>. Of entries in
    // lists it was added again.
    const double reach = least - query.shift - query.shift_error - std::fabs(least) * 1e-15 - 0x1p-90;
    const std::uint32_t* const ids = ids_ + slot * block_.stride;
    const float* const upper = upper_ + slot * block_.stride;
    std::size_t place = start + k;
    for (std::size_t i = k; i < count; ++i) {
      pairs[total] = {ids[i], std::uint32_t(slot), std::uint32_t(place)};
      const bool left = !(double(upper[i]) < reach);
      total += left;
      place += left;
    }
    candidates_[slot] = std::uint32_t(place - start);
  }
  return total;
}

// Evaluate pairs in float64. With `exclude`, those whose value in float32 is out of reach are marked
// instead. By entry, a row of the vocabulary is read and widened once for all of its pairs; else a
// query is.
void Workspace::evaluate(const Rows& queries, Pair* pairs, std::size_t count, bool exclude) {
  const Kernel& kernel = engine_.kernel_;
  const Rows& entries = engine_.entries_;
  const bool by_entry = by_entry_;
  const Rows& majors = by_entry ? entries : queries;
  const Rows& minors = by_entry ? queries : entries;
  const auto major_of = [by_entry](const Pair& p) { return by_entry ? p.entry : p.slot; };
  const auto minor_of = [by_entry](const Pair& p) { return by_entry ? p.slot : p.entry; };
  const Pair* const ordered = by_entry ? group_by_entry(pairs, count) : pairs;
  const double* wide = nullptr;
  const float* narrow = nullptr;
  std::size_t last = std::size_t(-1);
  for (std::size_t i = 0; i < count; ++i) {
    const Pair& pair = ordered[i];
    const std::size_t major = major_of(pair), minor = minor_of(pair);
    const Query& query = queries_[pair.slot];
    if (!by_entry) {
      prefetch_next();
    } else if (i + kAhead < count) {
      const Pair& ahead = ordered[i + kAhead];
      prefetch(queries, ahead.slot, kFirst);
      if (ahead.entry != ordered[i + kAhead - 1].entry) prefetch(entries, ahead.entry, kWhole);
    }
    if (major != last) wide = nullptr, narrow = nullptr;
    last = major;
    // Entries cannot be compared in float32 with a query that has to be scaled to fit it.
    if (exclude && !(by_entry && (query.exponent || queries.type == Type::float64))) {
      if (!narrow) narrow = narrow_row(majors, major, by_entry ? 0 : query.exponent);
      const double value = double(dot32(kernel, narrow, minors, minor)) * engine_.inverse_scale_;
      const double error = error32_ * query.norm * engine_.packed_.norms[pair.entry] + 0x1p-70;
      if (value + error < least_[pair.slot]) {
        found_[pair.place].value = double(kExcluded);
        continue;
      }
    }
    if (!wide) wide = wide_row(majors, major);
    ++counts_.rescored;
    found_[pair.place] = {dot64(kernel, wide, minors, minor),
                          query.error64 * engine_.packed_.norms[pair.entry],
                          engine_.id_of(pair.entry), pair.entry};
  }
}

const double* Workspace::wide_row(const Rows& rows, std::size_t i) {
  if (rows.type == Type::float64) return static_cast<const double*>(rows.row(i));
  engine_.kernel_.widen(rows.row(i), rows.type, rows.dim, wide_.data());
  return wide_.data();
}

// A row in float32, times 2^-exponent.
const float* Workspace::narrow_row(const Rows& rows, std::size_t i, int exponent) {
  if (rows.type == Type::float32 && exponent == 0) return static_cast<const float*>(rows.row(i));
  const float* x;
  engine_.kernel_.load(rows.row(i), rows.type, rows.dim, x32_.data(), &exponent, &x);
  return x;
}

// While one query is rescored, the rows are fetched that the next one likely needs.
void Workspace::prefetch_next() {
  if (next_count_ == 0) return;
  --next_count_;
  prefetch(engine_.entries_, *next_++, kFirst);
}

// Bring pairs of the same entry together, behind `pairs`.
const Pair* Workspace::group_by_entry(Pair* pairs, std::size_t count) {
  Pair* const grouped = pairs_.get() + engine_.most_pairs();
  std::fill(places_.begin(), places_.end(), 0);
  for (std::size_t i = 0; i < count; ++i) ++places_[pairs[i].entry + 1];
  for (std::size_t e = 1; e < places_.size(); ++e) places_[e] += places_[e - 1];
  for (std::size_t i = 0; i < count; ++i) grouped[places_[pairs[i].entry]++] = pairs[i];
  return grouped;
}

// Evaluate every entry that float32 does not exclude, of those that the query looks at.
void Workspace::search_all(const Rows& queries, std::size_t slot) {
  const Kernel& kernel = engine_.kernel_;
  const Rows& entries = engine_.entries_;
  const Query& query = queries_[slot];
  ++counts_.full_rows;
  all_.clear();
  const auto add = [&](std::size_t from, std::size_t to) {
    for (std::size_t row = from; row < to; ++row)
      all_.push_back({0, 0, engine_.id_of(row), std::uint32_t(row)});
  };
  if (probes_)
    for (std::size_t i = 0; i < probes_->each; ++i) {
      const std::uint32_t list = probes_->of(first_ + slot)[i];
      add(engine_.lists_.starts[list], engine_.lists_.starts[list + 1]);
    }
  else
    add(0, entries.count);
  counts_.candidates += all_.size();
  if (entries.type != Type::float64) {
    int exponent;
    const float* x;
    kernel.load(queries.row(slot), queries.type, queries.dim, x32_.data(), &exponent, &x);
    for (Candidate& c : all_) {
      c.value = double(dot32(kernel, x, entries, c.row)) * engine_.inverse_scale_;
      c.error = error32_ * query.norm * engine_.packed_.norms[c.row] + 0x1p-70;
    }
    keep_reachable(all_);
  }
  kernel.widen(queries.row(slot), queries.type, queries.dim, wide_.data());
  for (Candidate& c : all_)
    c = {dot64(kernel, wide_.data(), entries, c.row),
         query.error64 * engine_.packed_.norms[c.row], c.id, c.row};
  counts_.rescored += all_.size();
}

// Drop what float32 proves to be outside the k best.
void Workspace::keep_reachable(std::vector<Candidate>& all) {
  bounds_.resize(all.size());
  for (std::size_t i = 0; i < all.size(); ++i) bounds_[i] = all[i].value - all[i].error;
  std::nth_element(bounds_.begin(), bounds_.begin() + (engine_.k_ - 1), bounds_.end(),
                   std::greater<double>());
  const double least = bounds_[engine_.k_ - 1];
  all.erase(std::remove_if(all.begin(), all.end(),
                           [least](const Candidate& c) { return c.value + c.error < least; }),
            all.end());
}

}  // namespace bliss
