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

// A constant size where there are but two: a step is four bytes or sixty-four.
inline void copy_codes(std::uint8_t* to, const std::uint8_t* from, std::size_t count) {
  if (count == 4) std::memcpy(to, from, 4);
  else if (count == 64) std::memcpy(to, from, 64);
  else std::memcpy(to, from, count);
}

std::uint8_t* aligned(std::uint8_t* p) {
  return p + (64 - reinterpret_cast<std::uintptr_t>(p) % 64) % 64;
}

}  // namespace

Workspace::Workspace(const Engine& engine, const Engine::Centre& centre, std::size_t query_block)
    : engine_(engine), centre_(centre), queries_(query_block),
      code_storage_(query_block * engine.steps_ * engine.layout_.depth + 63), step_(query_block),
      alpha_(query_block), threshold_(query_block, kInfinity), per_norm_(query_block),
      per_residual_(query_block), candidates_(query_block), trigger_(query_block),
      due_(query_block + 1), ids_(query_block * engine.row_stride()), scores_(ids_.size()),
      lower_(engine.row_stride()), upper_(lower_.size()), x32_(engine.padded_),
      work_(engine.padded_), code_(engine.padded_), x64_(engine.padded_), t64_(engine.dim_) {
  codes_ = aligned(code_storage_.data());
  block_ = {query_block, codes_, step_.data(), alpha_.data(), threshold_.data(), per_norm_.data(),
            per_residual_.data(), candidates_.data(), trigger_.data(), ids_.data(), scores_.data(),
            engine.row_stride(), due_.data(), 0};
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
      const std::uint32_t* candidates = ids_.data() + (slot + 1) * block_.stride;
      for (std::uint32_t at : next) upcoming_.push_back(candidates[at]);
    }
    finish(queries, first + slot, slot, values, ids, orders_[slot % 2], upcoming_.data(),
           std::min(upcoming_.size(), 2 * engine_.k_));
  }
}

void Workspace::begin(const Rows& queries, std::size_t first, std::size_t last) {
  const Layout& layout = engine_.layout_;
  const std::size_t width = layout.depth * engine_.steps_;
  block_.count = (last - first + layout.group - 1) / layout.group * layout.group;
  const bool rounded = queries.type == Type::float64;
  for (std::size_t slot = 0; slot < block_.count; ++slot) {
    Query& query = queries_[slot];
    const std::size_t row = first + slot;
    candidates_[slot] = 0;
    trigger_[slot] = std::uint32_t(engine_.first_trigger_);
    threshold_[slot] = kInfinity;  // nothing passes, unless it is set below
    step_[slot] = alpha_[slot] = per_norm_[slot] = per_residual_[slot] = 0;
    query = {State::zero, 0, 0, 0, -kInfinity};
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
    // Codes beyond the dimension may be anything: those of the entries are zero there.
    std::uint8_t* const out = codes_ + slot / layout.group * layout.group * width +
                              slot % layout.group * layout.depth;
    for (std::size_t i = 0; i < engine_.dim_; i += layout.depth)
      copy_codes(out + i * layout.group, code_.data() + i,
                 std::min(layout.depth, engine_.padded_ - i));
    query.norm = prepared.norm;
    step_[slot] = prepared.step;
    alpha_[slot] = prepared.alpha;
    per_norm_[slot] = prepared.deviation;
    per_residual_[slot] = prepared.code_norm;
    threshold_[slot] = -kInfinity;
    // Scores are a few float32 operations on numbers below `largest`.
    const double largest =
        double(prepared.code_norm) * (double(engine_.largest_.norm) + engine_.largest_.residual) +
        std::fabs(double(prepared.alpha)) * centre_.largest_bias;
    query.slack = 16 * double(kUnit32) * largest + 0x1p-90;
  }
}

void Workspace::scan() {
  const std::size_t panels = engine_.panels_;
  engine_.kernel_.enter();
  std::size_t index = 0;
  for (std::size_t visited = 0; visited < panels; ++visited) {
    const std::size_t next = index + engine_.stride_ - (index + engine_.stride_ < panels ? 0 : panels);
    block_.due_count = 0;
    engine_.kernel_.score(engine_.panel(index, next, centre_), block_, engine_.steps_);
    for (std::uint32_t i = 0; i < block_.due_count; ++i) select(due_[i]);
    index = next;
  }
  engine_.kernel_.leave();
}

void Workspace::score_only() {
  engine_.kernel_.enter();
  for (std::size_t p = 0; p < engine_.panels_; ++p)
    engine_.kernel_.score(engine_.panel(p, p + 1 < engine_.panels_ ? p + 1 : 0, centre_), block_,
                          engine_.steps_);
  engine_.kernel_.leave();
}

double Workspace::bound(std::size_t slot, std::uint32_t id) const {
  const Bound& entry = engine_.bounds_[id];
  return (double(per_norm_[slot]) * entry.norm + double(per_residual_[slot]) * entry.residual) *
             (1 + 1e-6) + queries_[slot].slack;
}

// Raise the threshold to the k-th largest lower bound, and drop what is below it.
void Workspace::select(std::size_t slot) {
  Query& query = queries_[slot];
  if (candidates_[slot] >= engine_.k_) {
    // Bounds in float32 carry a relative error of 2^-22 at most, which the slack covers twice.
    const float before = query.threshold, wider = 1 + 0x1p-20f;
    const Selection selection{ids_.data() + slot * block_.stride,
                              scores_.data() + slot * block_.stride, candidates_[slot], engine_.k_,
                              engine_.bounds_.data(), per_norm_[slot] * wider,
                              per_residual_[slot] * wider, float(query.slack * 2),
                              lower_.data(), upper_.data()};
    candidates_[slot] = engine_.kernel_.select(selection, query.threshold);
    if (query.threshold > before)
      threshold_[slot] = query.threshold - 4 * float(query.slack) -
                         0x1p-20f * (per_norm_[slot] * engine_.largest_.norm +
                                     per_residual_[slot] * engine_.largest_.residual);
  }
  const std::size_t limit = engine_.capacity_, kept = candidates_[slot];
  if (kept > limit / 4 * 3) {
    query.state = State::overflowed;
    candidates_[slot] = 0;
    threshold_[slot] = kInfinity;
    return;
  }
  trigger_[slot] = std::uint32_t(std::min(limit, std::max(2 * kept, engine_.first_trigger_)));
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
  const std::size_t k = engine_.k_;
  order.clear();
  if (queries_[slot].state == State::searched) select(slot);
  if (queries_[slot].state != State::searched) return;
  const std::size_t count = candidates_[slot];
  const std::uint32_t* ids = ids_.data() + slot * block_.stride;
  const float* scores = scores_.data() + slot * block_.stride;
  order.resize(count);
  for (std::size_t i = 0; i < count; ++i) order[i] = std::uint32_t(i);
  if (count <= k) return;
  std::copy(scores, scores + count, lower_.begin());
  const float kth = engine_.kernel_.about_kth_largest(lower_.data(), count, k);
  const auto best = std::partition(order.begin(), order.end(),
                                   [=](std::uint32_t i) { return scores[i] >= kth; });
  std::partition(best, order.end(), [&](std::uint32_t i) {
    return scores[i] + float(bound(slot, ids[i])) >= kth;
  });
}

void Workspace::finish(const Rows& queries, std::size_t row, std::size_t slot, double* values,
                       std::int64_t* ids, std::vector<std::uint32_t>& order,
                       const std::uint32_t* next, std::size_t next_count) {
  const std::size_t k = engine_.k_;
  const Query& query = queries_[slot];
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
    rescore_candidates(slot, rounded, order, next, next_count);
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
void Workspace::rescore_candidates(std::size_t slot, bool rounded,
                                   const std::vector<std::uint32_t>& order,
                                   const std::uint32_t* next, std::size_t next_count) {
  const std::size_t k = engine_.k_, count = order.size();
  const Query& query = queries_[slot];
  const std::uint32_t* ids = ids_.data() + slot * block_.stride;
  const float* scores = scores_.data() + slot * block_.stride;
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
    const double upper = double(scores[at]) + bound(slot, ids[at]) + shift + slack;
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
