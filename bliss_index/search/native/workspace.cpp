#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace bliss {
namespace {

constexpr std::size_t kGathered = 64;  // queries of a list that are multiplied together
constexpr std::size_t kRow = 4096;  // bytes of a row that are fetched at once, at most
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

Workspace::Workspace(const Engine& engine)
    : engine_(engine), room_(&engine.rooms_.front()), queries_(room_->queries),
      code_storage_(queries_.size() * engine.steps_ * engine.layout_.depth + 63),
      step_(queries_.size()), alpha_(step_.size()), threshold_(step_.size(), kInfinity),
      per_norm_(step_.size()), per_residual_(step_.size()), slack_(step_.size()),
      candidates_(step_.size()), trigger_(step_.size()), due_(step_.size() + 1),
      rows_(make_large_array<std::uint32_t>(3 * engine.most_candidates())),
      x32_(engine.padded_), work_(engine.padded_), code_(engine.padded_), wide_(engine.padded_),
      x64_(engine.padded_), t64_(engine.dim_), least_(step_.size()), starts_(step_.size() + 1),
      pairs_(make_large_array<Pair>(2 * engine.most_pairs())),
      found_(make_large_array<Candidate>(engine.most_pairs())),
      places_(engine.most_grouped() + 1) {
  codes_ = aligned(code_storage_.data());
  if (engine.lists_.count) make_gathered();
  block_.codes = codes_;
  block_.step = step_.data();
  block_.alpha = alpha_.data();
  block_.threshold = threshold_.data();
  block_.per_norm = per_norm_.data();
  block_.per_residual = per_residual_.data();
  block_.slack = slack_.data();
  block_.candidates = candidates_.data();
  block_.trigger = trigger_.data();
  block_.due = due_.data();
  enter(engine.rooms_.front());
  exact_ = [this](std::uint32_t id) {
    engine_.kernel_.widen(exact_query_, exact_type_, engine_.dim_, x64_.data());
    read_row(engine_.entries_, id, t64_.data());
    const bool exact_products = !rounded_ && engine_.entries_.type != Type::float64;
    return exact_dot(x64_.data(), t64_.data(), engine_.dim_, exact_products);
  };
}

// Share out the candidates among the queries of a block.
void Workspace::enter(const Room& room) {
  room_ = &room;
  const std::size_t numbers = engine_.most_candidates();
  block_.ids = ids_ = rows_.get();
  block_.lower = lower_ = reinterpret_cast<float*>(rows_.get() + numbers);
  block_.upper = upper_ = reinterpret_cast<float*>(rows_.get() + 2 * numbers);
  block_.stride = room.stride;
}

void Workspace::search(const Room& room, const Engine::Centre& centre, const Rows& queries,
                       const Probes* probes, const float* thresholds, std::size_t first,
                       std::size_t last, double* values, std::int64_t* ids) {
  probes_ = probes;
  enter(room);
  begin(centre, queries, thresholds, first, last);
  if (probes) scan_lists(centre, last - first);
  else scan(centre);
  for (std::size_t slot = 0; slot < last - first; ++slot) arrange(slot, first + slot);
  finish(queries.part(first, last - first), values + first * engine_.k_, ids + first * engine_.k_);
}

void Workspace::report(Counts& counts, std::vector<std::int64_t>& bad,
                       std::vector<Unsettled>& left) {
  counts.add(counts_);
  bad.insert(bad.end(), bad_.begin(), bad_.end());
  left.insert(left.end(), left_.begin(), left_.end());
  counts_ = Counts();
  bad_.clear();
  left_.clear();
}

void Workspace::begin(const Engine::Centre& centre, const Rows& queries, const float* thresholds,
                      std::size_t first, std::size_t last) {
  const Layout& layout = engine_.layout_;
  const std::size_t width = layout.depth * engine_.steps_;
  searched_ = queries;
  first_ = first;
  rounded_ = queries.type == Type::float64;
  error32_ = (dot32_roundings(engine_.kernel_, engine_.dim_) + (rounded_ ? 1.01 : 0.0)) *
             double(kUnit32) * 1.001;
  block_.count = (last - first + layout.group - 1) / layout.group * layout.group;
  for (std::size_t slot = 0; slot < block_.count; ++slot) {
    Query& query = queries_[slot];
    const std::size_t row = first + slot;
    candidates_[slot] = 0;
    trigger_[slot] = std::uint32_t(engine_.first_trigger_);
    threshold_[slot] = kInfinity;  // nothing passes, unless it is set below
    step_[slot] = alpha_[slot] = per_norm_[slot] = per_residual_[slot] = slack_[slot] = 0;
    query = {State::zero, 0, 0, 0, 0, 0, 0, -kInfinity};
    if (row >= last) continue;
    const float* x;
    if (row + 2 < last) prefetch(queries, row + 2, kRow);
    const Content content = engine_.kernel_.load(queries.row(row), queries.type, queries.dim,
                                                 x32_.data(), &query.exponent, &x);
    if (content == Content::not_finite) {
      query.state = State::bad;
      bad_.push_back(std::int64_t(row));
    }
    if (content != Content::numbers) continue;
    query.state = State::searched;
    const Prepared prepared =
        engine_.kernel_.prepare(x, rounded_, centre.vector.data(), centre.square,
                                engine_.rotation_, work_.data(), code_.data());
    // Codes beyond the dimension may be anything: those of the entries are zero there.
    if (probes_) std::memcpy(codes_ + slot * width, code_.data(), std::min(width, engine_.padded_));
    else lay_out(codes_, slot, code_.data());
    query.norm = prepared.norm;
    if (!engine_.lists_.count) {
      query.shift = engine_.kernel_.dot32_f32(x, engine_.mean32_.data(), engine_.dim_);
      query.shift_error = (error32_ + 3 * double(kUnit32)) * query.norm * engine_.packed_.facts->mean_norm;
    }
    const int power = query.exponent + int(engine_.packed_.facts->exponent);
    query.scale = std::ldexp(1.0, -power);
    query.error64 = double(engine_.dim_ + 2) * 0x1p-53 * (1 + 1e-5) * query.norm * std::ldexp(1.0, power);
    step_[slot] = prepared.step;
    alpha_[slot] = prepared.alpha;
    // Bounds in float32 carry a relative error of 2^-22 at most.
    const float wider = 1 + 0x1p-20f;
    per_norm_[slot] = prepared.deviation * wider;
    per_residual_[slot] = prepared.code_norm * wider;
    // Scores are a few float32 operations on numbers below `largest`.
    const double largest =
        double(prepared.code_norm) * (double(engine_.packed_.facts->largest.norm) + engine_.packed_.facts->largest.residual) +
        std::fabs(double(prepared.alpha)) * centre.largest_bias;
    slack_[slot] = float(32 * double(kUnit32) * largest + 0x1p-89);
    if (thresholds) query.threshold = thresholds[row];
    threshold_[slot] = query.threshold - 2 * slack_[slot];
  }
}

void Workspace::scan(const Engine::Centre& centre) {
  const std::size_t panels = engine_.panels_;
  engine_.kernel_.enter();
  std::size_t index = 0;
  for (std::size_t visited = 0; visited < panels; ++visited) {
    const std::size_t next = index + engine_.stride_ - (index + engine_.stride_ < panels ? 0 : panels);
    block_.due_count = 0;
    engine_.kernel_.score(engine_.panel(index, next, centre), block_, engine_.steps_);
    for (std::uint32_t i = 0; i < block_.due_count; ++i) select(due_[i]);
    index = next;
  }
  engine_.kernel_.leave();
}

// Write the codes of a query into those of a block, where a kernel reads them.
void Workspace::lay_out(std::uint8_t* codes, std::size_t slot, const std::uint8_t* from) const {
  const Layout& layout = engine_.layout_;
  std::uint8_t* const out = codes + slot / layout.group * layout.group * layout.depth * engine_.steps_ +
                            slot % layout.group * layout.depth;
  for (std::size_t i = 0; i < engine_.dim_; i += layout.depth)
    copy_codes(out + i * layout.group, from + i, std::min(layout.depth, engine_.padded_ - i));
}

void Workspace::make_gathered() {
  const Layout& layout = engine_.layout_;
  const std::size_t most = (kGathered + layout.group - 1) / layout.group * layout.group;
  const std::size_t stride = (kPanelsAtOnce + 1) * layout.panel + 16;
  Gathered& g = gathered_;
  g.code_storage.resize(most * layout.depth * engine_.steps_ + 63);
  g.codes = aligned(g.code_storage.data());
  g.numbers.resize(6 * most);
  g.shift.resize(most);
  g.margin.resize(most);
  g.counts.resize(3 * most + 1);
  g.rows.resize(3 * most * stride);
  float* const numbers = g.numbers.data();
  std::uint32_t* const counts = g.counts.data();
  std::fill_n(counts + most, most, ~std::uint32_t(0));  // nothing is ever due
  g.block = {0, g.codes, numbers, numbers + most, numbers + 2 * most, numbers + 3 * most,
             numbers + 4 * most, numbers + 5 * most, counts, counts + most, g.rows.data(),
             reinterpret_cast<float*>(g.rows.data() + most * stride),
             reinterpret_cast<float*>(g.rows.data() + 2 * most * stride), stride,
             counts + 2 * most, 0};
}

// Every list is multiplied with the queries that look into it.
void Workspace::scan_lists(const Engine::Centre& centre, std::size_t count) {
  Gathered& g = gathered_;
  const std::size_t lists = engine_.lists_.count;
  g.starts.assign(lists + 1, 0);
  const auto for_each_probe = [&](auto body) {
    for (std::size_t slot = count; slot-- > 0;)
      if (queries_[slot].state == State::searched)
        for (std::size_t i = 0; i < probes_->each; ++i) body(slot, probes_->of(first_ + slot)[i]);
  };
  for_each_probe([&](std::size_t, std::uint32_t list) { ++g.starts[list]; });
  std::uint32_t end = 0;
  for (std::uint32_t& start : g.starts) start = end += start;
  g.slots.resize(end);
  for_each_probe([&](std::size_t slot, std::uint32_t list) {
    g.slots[--g.starts[list]] = std::uint32_t(slot);
  });
  engine_.kernel_.enter();
  for (std::size_t list = 0; list < lists; ++list)
    for (std::size_t at = g.starts[list]; at < g.starts[list + 1]; at += kGathered)
      scan_list(centre, list, g.slots.data() + at,
                std::min<std::size_t>(kGathered, g.starts[list + 1] - at));
  engine_.kernel_.leave();
}

void Workspace::scan_list(const Engine::Centre& centre, std::size_t list,
                          const std::uint32_t* slots, std::size_t count) {
  const std::uint32_t begin = engine_.lists_.starts[list], end = engine_.lists_.starts[list + 1];
  if (begin == end) return;
  const std::size_t panel = engine_.layout_.panel, stop = (end - 1) / panel + 1;
  gather(list, slots, count);
  for (std::size_t p = begin / panel, at = 1; p < stop; ++p, ++at) {
    gathered_.block.due_count = 0;
    engine_.kernel_.score(engine_.panel(p, p + 1 < engine_.panels_ ? p + 1 : p, centre),
                          gathered_.block, engine_.steps_);
    // The first two give a query that has found nothing yet its first threshold.
    if ((at + kPanelsAtOnce - 2) % kPanelsAtOnce == 0 || p + 1 == stop)
      scatter(slots, count, begin, end);
  }
}

// In float32, of a query as it was scaled.
float Workspace::product_with(const float* centre, std::size_t slot) {
  const std::size_t row = first_ + slot;
  if (searched_.type == Type::float16)
    return engine_.kernel_.dot32_f16(
        centre, static_cast<const std::uint16_t*>(searched_.row(row)), engine_.dim_);
  return engine_.kernel_.dot32_f32(narrow_row(searched_, row, queries_[slot].exponent), centre,
                                   engine_.dim_);
}

void Workspace::gather(std::size_t list, const std::uint32_t* slots, std::size_t count) {
  const Layout& layout = engine_.layout_;
  const std::size_t width = layout.depth * engine_.steps_;
  Block& block = gathered_.block;
  float* const numbers = gathered_.numbers.data();
  const std::size_t most = gathered_.numbers.size() / 6;
  block.count = (count + layout.group - 1) / layout.group * layout.group;
  for (std::size_t i = 0; i < block.count; ++i) {
    block.candidates[i] = 0;
    numbers[2 * most + i] = kInfinity;  // the threshold: nothing passes, unless it is set below
    if (i >= count) continue;
    const std::size_t slot = slots[i];
    // Beside the product's error, roundings of what is added to it.
    gathered_.shift[i] = product_with(engine_.list_centre(list), slot);
    gathered_.margin[i] = float((error32_ + 16 * double(kUnit32)) * queries_[slot].norm *
                                double(engine_.list_norms_[list])) + slack_[slot];
    lay_out(gathered_.codes, i, codes_ + slot * width);
    const float from[] = {step_[slot], alpha_[slot], gathered_.threshold(i, threshold_[slot]),
                          per_norm_[slot], per_residual_[slot], slack_[slot]};
    for (std::size_t j = 0; j < 6; ++j) numbers[j * most + i] = from[j];
  }
}

void Workspace::scatter(const std::uint32_t* slots, std::size_t count, std::uint32_t begin,
                        std::uint32_t end) {
  const Block& block = gathered_.block;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t slot = slots[i], from = i * block.stride, to = slot * block_.stride;
    const float shift = gathered_.shift[i], margin = gathered_.margin[i];
    std::uint32_t kept = candidates_[slot];
    for (std::size_t j = from; j < from + block.candidates[i]; ++j) {
      ids_[to + kept] = block.ids[j];
      lower_[to + kept] = block.lower[j] + (shift - margin);
      upper_[to + kept] = block.upper[j] + (shift + margin);
      kept += block.ids[j] >= begin && block.ids[j] < end;  // a panel may have others' entries
    }
    block.candidates[i] = 0;
    const bool due = kept >= trigger_[slot] && candidates_[slot] != kept;
    candidates_[slot] = kept;
    if (due) select(slot);
    const_cast<float*>(block.threshold)[i] = gathered_.threshold(i, threshold_[slot]);
  }
}

void Workspace::intervals(const Room& room, const Engine::Centre& centre, const Rows& queries,
                          std::size_t first, std::size_t last, double* lower, double* upper) {
  const std::size_t lists = engine_.lists_.count;
  std::vector<std::uint32_t> every(last * lists);
  for (std::size_t i = 0; i < every.size(); ++i) every[i] = std::uint32_t(i % lists);
  const Probes all{every.data(), lists};
  probes_ = lists ? &all : nullptr;
  enter(room);
  begin(centre, queries, nullptr, first, last);
  std::fill(trigger_.begin(), trigger_.end(), ~std::uint32_t(0));  // nothing is ever dropped
  if (probes_) scan_lists(centre, last - first);
  else scan(centre);
  for (std::size_t slot = 0; slot < last - first; ++slot) {
    const double unit = queries_[slot].scale > 0 ? 1 / queries_[slot].scale : 0;
    for (std::size_t at = slot * block_.stride, i = 0; i < candidates_[slot]; ++i, ++at) {
      const std::size_t place = (first + slot) * engine_.entries_.count + ids_[at];
      lower[place] = double(lower_[at]) * unit;
      upper[place] = double(upper_[at]) * unit;
    }
  }
}

void Workspace::score_only(const Room& room, const Engine::Centre& centre) {
  enter(room);
  block_.count = queries_.size();
  std::fill(threshold_.begin(), threshold_.end(), kInfinity);
  engine_.kernel_.enter();
  for (std::size_t p = 0; p < engine_.panels_; ++p)
    engine_.kernel_.score(engine_.panel(p, p + 1 < engine_.panels_ ? p + 1 : 0, centre), block_,
                          engine_.steps_);
  engine_.kernel_.leave();
}

// Raise the threshold to the k-th largest lower end, and drop what lies below it.
void Workspace::select(std::size_t slot) {
  Query& query = queries_[slot];
  if (candidates_[slot] >= engine_.k_) {
    const float before = query.threshold;
    const std::size_t at = slot * block_.stride;
    const Selection selection{ids_ + at, lower_ + at, upper_ + at,
                              candidates_[slot], engine_.k_};
    candidates_[slot] = engine_.kernel_.select(selection, query.threshold);
    // The test adds a bound without the slack, and rounds.
    if (query.threshold > before) threshold_[slot] = query.threshold - 2 * slack_[slot];
  }
  const std::size_t limit = room_->capacity, kept = candidates_[slot];
  if (query.state == State::overflowed || kept > limit / 4 * 3) return overflow(slot);
  trigger_[slot] = std::uint32_t(std::min(limit, std::max(2 * kept, engine_.first_trigger_)));
}

// Too many candidates. Where the query will be searched again, only those go on that can raise its
// threshold, for it to start there with.
void Workspace::overflow(std::size_t slot) {
  Query& query = queries_[slot];
  query.state = State::overflowed;
  candidates_[slot] = 0;
  threshold_[slot] = kInfinity;
  if (room_->last) return;
  const std::size_t k = engine_.k_, at = slot * block_.stride;
  best_first(slot);
  float least = kInfinity;
  for (std::size_t i = at; i < at + k; ++i) least = std::min(least, upper_[i] - lower_[i]);
  candidates_[slot] = std::uint32_t(k);
  threshold_[slot] = query.threshold + least;
  trigger_[slot] = std::uint32_t(engine_.first_trigger_);
}

// Put k candidates first whose lower ends reach the threshold; there are as many.
void Workspace::best_first(std::size_t slot) {
  std::uint32_t* const ids = ids_ + slot * block_.stride;
  float* const lower = lower_ + slot * block_.stride;
  float* const upper = upper_ + slot * block_.stride;
  const float kth = queries_[slot].threshold;
  std::size_t best = 0;
  for (std::size_t i = 0; best < engine_.k_; ++i) {
    const bool first = lower[i] >= kth;
    std::swap(ids[i], ids[best]);
    std::swap(lower[i], lower[best]);
    std::swap(upper[i], upper[best]);
    best += first;
  }
}

// Select a last time, and put the k largest lower ends first, the other candidates behind them.
void Workspace::arrange(std::size_t slot, std::size_t row) {
  Query& query = queries_[slot];
  if (query.state == State::searched || candidates_[slot]) select(slot);
  if (query.state == State::overflowed) {
    if (!room_->last) left_.push_back({row, query.threshold});
    candidates_[slot] = 0;
  }
  if (candidates_[slot] > engine_.k_) best_first(slot);
}

}  // namespace bliss
