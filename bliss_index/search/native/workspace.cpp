#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bliss {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The k-th largest number; reorders them.
template <class T>
T kth_largest(std::vector<T>& numbers, std::size_t count, std::size_t k) {
  std::nth_element(numbers.begin(), numbers.begin() + (k - 1), numbers.begin() + count,
                   [](T a, T b) { return a > b; });
  return numbers[k - 1];
}

}  // namespace

Workspace::Workspace(const Engine& engine, const Engine::Centre& centre, std::size_t query_block)
    : engine_(engine), centre_(centre), groups_(query_block / kGroup), queries_(query_block),
      codes_(query_block * engine.steps_ * 4), ids_(query_block * row_stride(engine.capacity_)),
      scores_(ids_.size()), lower_(row_stride(engine.capacity_)), upper_(lower_.size()),
      x32_(engine.padded_), work_(engine.padded_), code_(engine.padded_), x64_(engine.padded_),
      t64_(engine.dim_) {
  const std::size_t stride = row_stride(engine.capacity_);
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    groups_[g].codes = codes_.data() + g * kGroup * engine.steps_ * 4;
    for (std::size_t lane = 0; lane < kGroup; ++lane) {
      groups_[g].ids[lane] = ids_.data() + (g * kGroup + lane) * stride;
      groups_[g].scores[lane] = scores_.data() + (g * kGroup + lane) * stride;
      groups_[g].count[lane] = 0;
      groups_[g].threshold[lane] = kInfinity;
      groups_[g].step[lane] = groups_[g].alpha[lane] = 0;
      groups_[g].per_norm[lane] = groups_[g].per_residual[lane] = 0;
    }
  }
  groups_used_ = groups_.size();
  error32_ = dot32_roundings(engine.kernel_, engine.dim_) * double(kUnit32) * 1.001;
}

void Workspace::search(const Rows& queries, std::size_t first, std::size_t last, double* values,
                       std::int64_t* ids) {
  begin(queries, first, last);
  scan();
  // Rescoring waits for memory: while one query is rescored, the next one's rows are fetched.
  const std::size_t count = last - first;
  arrange(0, orders_[0]);
  for (std::size_t slot = 0; slot < count; ++slot) {
    std::vector<std::uint32_t>& next = orders_[(slot + 1) % 2];
    upcoming_.clear();
    if (slot + 1 < count) {
      arrange(slot + 1, next);
      const Group& group = groups_[(slot + 1) / kGroup];
      for (std::uint32_t at : next) upcoming_.push_back(group.ids[(slot + 1) % kGroup][at]);
    }
    finish(queries, first + slot, slot, values, ids, orders_[slot % 2], upcoming_.data(),
           std::min(upcoming_.size(), 2 * engine_.k_));
  }
}

void Workspace::begin(const Rows& queries, std::size_t first, std::size_t last) {
  groups_used_ = (last - first + kGroup - 1) / kGroup;
  std::memset(codes_.data(), engine_.kernel_.query_offset, codes_.size());
  const bool rounded = queries.type == Type::float64;
  for (std::size_t slot = 0; slot < groups_used_ * kGroup; ++slot) {
    Group& group = groups_[slot / kGroup];
    Query& query = queries_[slot];
    const std::size_t lane = slot % kGroup, row = first + slot;
    group.count[lane] = 0;
    group.threshold[lane] = kInfinity;  // nothing passes, unless it is set below
    group.step[lane] = group.alpha[lane] = 0;
    group.per_norm[lane] = group.per_residual[lane] = 0;
    query = {State::zero, 0, 0, 0, -kInfinity, std::uint32_t(engine_.first_trigger_)};
    if (row >= last) continue;
    const Content content = engine_.kernel_.load(queries.row(row), queries.type, queries.dim,
                                                 x32_.data(), &query.exponent);
    if (content == Content::not_finite) {
      query.state = State::bad;
      bad_.push_back(std::int64_t(row));
    }
    if (content != Content::numbers) continue;
    query.state = State::searched;
    const Prepared prepared =
        engine_.kernel_.prepare(x32_.data(), rounded, centre_.vector.data(), centre_.square,
                                engine_.rotation_, work_.data(), code_.data());
    std::uint8_t* out = codes_.data() + slot / kGroup * kGroup * engine_.steps_ * 4 + lane * 4;
    for (std::size_t step = 0; step < engine_.steps_; ++step)
      std::memcpy(out + step * kGroup * 4, code_.data() + 4 * step, 4);
    query.norm = prepared.norm;
    group.step[lane] = prepared.step;
    group.alpha[lane] = prepared.alpha;
    group.per_norm[lane] = prepared.deviation;
    group.per_residual[lane] = prepared.code_norm;
    group.threshold[lane] = -kInfinity;
    // Scores are a few float32 operations on numbers below `largest`.
    const double largest =
        double(prepared.code_norm) * (double(engine_.largest_.norm) + engine_.largest_.residual) +
        std::fabs(double(prepared.alpha)) * centre_.largest_bias;
    query.slack = 16 * double(kUnit32) * largest + 0x1p-90;
  }
}

void Workspace::scan() {
  const std::size_t panels = engine_.panels_;
  std::size_t index = 0;
  for (std::size_t visited = 0; visited < panels; ++visited) {
    const Panel panel = engine_.panel(index, centre_);
    index += engine_.stride_;
    if (index >= panels) index -= panels;
    // The next panel lies elsewhere: fetch a part of it with every group.
    const char* next = reinterpret_cast<const char*>(engine_.panel(index, centre_).codes);
    const char* const next_end = next + kPanel * engine_.steps_ * 4;
    const std::size_t part = ((kPanel * engine_.steps_ * 4 / groups_used_) + 63) / 64 * 64;
    for (std::size_t g = 0; g < groups_used_; ++g) {
      Group& group = groups_[g];
      const char* const part_end = std::min(next + part, next_end);
      for (; next < part_end; next += 64) __builtin_prefetch(next, 0, 2);
      engine_.kernel_.score(panel, group, engine_.steps_);
      for (std::size_t lane = 0; lane < kGroup; ++lane)
        if (__builtin_expect(group.count[lane] >= queries_[g * kGroup + lane].trigger, 0))
          select(group, lane, queries_[g * kGroup + lane]);
    }
  }
}

void Workspace::score_only() {
  for (std::size_t p = 0; p < engine_.panels_; ++p) {
    const Panel panel = engine_.panel(p, centre_);
    for (Group& group : groups_) engine_.kernel_.score(panel, group, engine_.steps_);
  }
}

double Workspace::bound(const Group& group, std::size_t lane, const Query& query,
                        std::uint32_t id) const {
  const Bound& entry = engine_.bounds_[id];
  return (double(group.per_norm[lane]) * entry.norm +
          double(group.per_residual[lane]) * entry.residual) * (1 + 1e-6) + query.slack;
}

// Raise the threshold to the k-th largest lower bound, and drop what is below it.
void Workspace::select(Group& group, std::size_t lane, Query& query) {
  if (group.count[lane] >= engine_.k_) {
    // Bounds in float32 carry a relative error of 2^-22 at most, which the slack covers twice.
    const float before = query.threshold, wider = 1 + 0x1p-20f;
    const Selection selection{group.ids[lane], group.scores[lane], group.count[lane], engine_.k_,
                              engine_.bounds_.data(), group.per_norm[lane] * wider,
                              group.per_residual[lane] * wider, float(query.slack * 2),
                              lower_.data(), upper_.data()};
    group.count[lane] = engine_.kernel_.select(selection, query.threshold);
    if (query.threshold > before)
      group.threshold[lane] = query.threshold - 4 * float(query.slack) -
                              0x1p-20f * (group.per_norm[lane] * engine_.largest_.norm +
                                          group.per_residual[lane] * engine_.largest_.residual);
  }
  const std::size_t limit = engine_.capacity_, kept = group.count[lane];
  if (kept > limit / 4 * 3) {
    query.state = State::overflowed;
    group.count[lane] = 0;
    group.threshold[lane] = kInfinity;
    return;
  }
  query.trigger = std::uint32_t(std::min(limit, std::max(2 * kept, engine_.first_trigger_)));
}

float Workspace::dot32(std::uint32_t id) const {
  const void* row = engine_.entries_.row(id);
  if (engine_.entries_.type == Type::float16)
    return engine_.kernel_.dot32_f16(x32_.data(), static_cast<const std::uint16_t*>(row),
                                     engine_.dim_);
  return engine_.kernel_.dot32_f32(x32_.data(), static_cast<const float*>(row), engine_.dim_);
}

double Workspace::dot64(std::uint32_t id) const {
  const void* row = engine_.entries_.row(id);
  switch (engine_.entries_.type) {
    case Type::float16:
      return engine_.kernel_.dot64_f16(x64_.data(), static_cast<const std::uint16_t*>(row),
                                       engine_.dim_);
    case Type::float32:
      return engine_.kernel_.dot64_f32(x64_.data(), static_cast<const float*>(row), engine_.dim_);
    default:
      return engine_.kernel_.dot64_f64(x64_.data(), static_cast<const double*>(row), engine_.dim_);
  }
}

void Workspace::prefetch(std::uint32_t id) const {
  const char* row = static_cast<const char*>(engine_.entries_.row(id));
  const std::size_t bytes = engine_.dim_ * type_bytes(engine_.entries_.type);
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at);
}

// Select a last time, and order the candidates: the k best scores, then those that are likely to be
// needed as well, then the others.
void Workspace::arrange(std::size_t slot, std::vector<std::uint32_t>& order) {
  const std::size_t k = engine_.k_, lane = slot % kGroup;
  Group& group = groups_[slot / kGroup];
  Query& query = queries_[slot];
  order.clear();
  if (query.state == State::searched) select(group, lane, query);
  if (query.state != State::searched) return;
  const std::size_t count = group.count[lane];
  const float* scores = group.scores[lane];
  order.resize(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = std::uint32_t(i);
  if (count <= k) return;
  std::copy(scores, scores + count, lower_.begin());
  const float kth = engine_.kernel_.about_kth_largest(lower_.data(), count, k);
  const auto best = std::partition(order.begin(), order.end(),
                                   [=](std::uint32_t i) { return scores[i] >= kth; });
  std::partition(best, order.end(), [&](std::uint32_t i) {
    return scores[i] + float(bound(group, lane, query, group.ids[lane][i])) >= kth;
  });
}

void Workspace::finish(const Rows& queries, std::size_t row, std::size_t slot, double* values,
                       std::int64_t* ids, std::vector<std::uint32_t>& order,
                       const std::uint32_t* next, std::size_t next_count) {
  const std::size_t k = engine_.k_, lane = slot % kGroup;
  Group& group = groups_[slot / kGroup];
  Query& query = queries_[slot];
  values += row * k;
  ids += row * k;
  if (query.state == State::bad || query.state == State::zero) {
    for (std::size_t i = 0; i < k; ++i) values[i] = 0.0, ids[i] = std::int64_t(i);
    return;
  }
  const double norm = query.norm;
  int exponent = 0;
  engine_.kernel_.load(queries.row(row), queries.type, queries.dim, x32_.data(), &exponent);
  engine_.kernel_.widen(queries.row(row), queries.type, queries.dim, x64_.data());
  const bool rounded = queries.type == Type::float64;
  found_.clear();
  if (query.state == State::searched) {
    rescore_candidates(group, lane, query, rounded, order, next, next_count);
  } else {
    ++counts_.full_rows;
    rescore_everything(norm, rounded);
  }
  counts_.candidates += found_.size();
  const bool narrow = engine_.entries_.type != Type::float64;
  if (narrow) keep_reachable();

  counts_.rescored += found_.size();
  const double scale = std::ldexp(1.0, exponent + engine_.exponent_);
  const double error64 = double(engine_.dim_ + 2) * 0x1p-53 * (1 + 1e-5) * norm * scale;
  for (Candidate& c : found_) {
    c.value = dot64(c.id);
    c.error = error64 * engine_.norms_[c.id];
  }
  const bool exact_products = !rounded && narrow;
  counts_.resolved += order_candidates(found_, k, [&](std::uint32_t id) {
    read_row(engine_.entries_, id, t64_.data());
    return exact_dot(x64_.data(), t64_.data(), engine_.dim_, exact_products);
  });
  for (std::size_t i = 0; i < k; ++i) {
    values[i] = found_[i].value;
    ids[i] = std::int64_t(found_[i].id);
  }
}

// Float32 products of the candidates, best first; the later ones only where they can still matter.
void Workspace::rescore_candidates(const Group& group, std::size_t lane, const Query& query,
                                   bool rounded, std::vector<std::uint32_t>& order, const std::uint32_t* next,
                                   std::size_t next_count) {
  const std::size_t k = engine_.k_, count = order.size();
  const std::uint32_t* ids = group.ids[lane];
  const float* scores = group.scores[lane];
  if (engine_.entries_.type == Type::float64) {
    for (std::size_t i = 0; i < count; ++i) found_.push_back({0, 0, ids[i]});
    return;
  }
  const double norm = query.norm;
  const double error = error32_ + (rounded ? double(kUnit32) * 1.01 : 0.0);
  const double scale = std::ldexp(1.0, -engine_.exponent_);
  const auto rescore = [&](std::uint32_t id) {
    if (next_count > 0) prefetch(*next++), --next_count;
    found_.push_back({double(dot32(id)) * scale, error * norm * engine_.norms_[id] + 0x1p-70, id});
  };
  double least = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < k; ++i) {
    rescore(ids[order[i]]);
    least = std::min(least, found_[i].value - found_[i].error);
  }
  // What centring took away is the same for all entries: <query, mean of the entries>.
  const double shift = std::ldexp(engine_.kernel_.dot64_f64(x64_.data(), engine_.mean_.data(),
                                                            engine_.dim_), -query.exponent);
  const double slack = 0x1p-34 * norm * engine_.mean_norm_ + 0x1p-90;
  for (std::size_t i = k; i < count; ++i) {
    const std::uint32_t at = order[i];
    const double upper = double(scores[at]) + bound(group, lane, query, ids[at]) + shift + slack;
    if (upper >= least) rescore(ids[at]);
  }
  for (; next_count > 0; --next_count) prefetch(*next++);
}

void Workspace::rescore_everything(double norm, bool rounded) {
  const double error = error32_ + (rounded ? double(kUnit32) * 1.01 : 0.0);
  const double scale = std::ldexp(1.0, -engine_.exponent_);
  found_.reserve(engine_.entries_.count);
  for (std::uint32_t id = 0; id < engine_.entries_.count; ++id) {
    if (engine_.entries_.type == Type::float64) {
      found_.push_back({0, 0, id});
    } else {
      found_.push_back(
          {double(dot32(id)) * scale, error * norm * engine_.norms_[id] + 0x1p-70, id});
    }
  }
}

// Drop what float32 proves to be outside the k best.
void Workspace::keep_reachable() {
  if (found_.size() <= engine_.k_) return;
  bounds_.resize(found_.size());
  for (std::size_t i = 0; i < found_.size(); ++i) bounds_[i] = found_[i].value - found_[i].error;
  const double least = kth_largest(bounds_, found_.size(), engine_.k_);
  found_.erase(std::remove_if(found_.begin(), found_.end(),
                              [least](const Candidate& c) { return c.value + c.error < least; }),
               found_.end());
}

}  // namespace bliss
