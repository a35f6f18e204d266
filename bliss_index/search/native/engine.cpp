#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "workspace.h"

namespace bliss {
namespace {

constexpr std::size_t kManyEntries = 16384;  // of which many are near each other
constexpr std::size_t kCapacity = 1024, kCapacityForMany = 2048;
constexpr std::size_t kNumbers = (std::size_t(8) << 20) / 12;  // of candidates of a thread: 8 MiB
// Of queries that look into lists: many at a time, so that several look into the same.
constexpr std::size_t kCapacityOfLists = 1024, kQueriesOfLists = 8192;

float above(double value) { return float(value * (1 + 1e-6)) + 0x1p-100f; }

template <class Body>
void with_typed_row(const Rows& rows, std::size_t i, Body body) {
  switch (rows.type) {
    case Type::float16: body(static_cast<const std::uint16_t*>(rows.row(i))); break;
    case Type::float32: body(static_cast<const float*>(rows.row(i))); break;
    case Type::float64: body(static_cast<const double*>(rows.row(i))); break;
  }
}

bool never_stop() { return true; }

void require_entries(const Lists& lists, std::size_t probed, std::size_t k) {
  std::vector<std::size_t> sizes(lists.count);
  for (std::size_t l = 0; l < lists.count; ++l) sizes[l] = lists.starts[l + 1] - lists.starts[l];
  const std::size_t each = std::min(probed, lists.count);
  std::partial_sort(sizes.begin(), sizes.begin() + each, sizes.end());
  std::size_t entries = 0;
  for (std::size_t i = 0; i < each; ++i) entries += sizes[i];
  if (entries < k)
    throw std::invalid_argument(std::to_string(each) + " lists may hold " + std::to_string(entries) +
                                " entries, fewer than k = " + std::to_string(k));
}

}  // namespace

double half_to_double(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25)
                                    : std::ldexp(fraction, -24);
  return half & 0x8000 ? -magnitude : magnitude;
}

void read_row(const Rows& rows, std::size_t i, double* out) {
  with_typed_row(rows, i, [&](const auto* row) {
    for (std::size_t j = 0; j < rows.dim; ++j) {
      if constexpr (sizeof(*row) == 2) out[j] = half_to_double(row[j]);
      else out[j] = double(row[j]);
    }
  });
}

void Counts::add(const Counts& other) {
  candidates += other.candidates;
  rescored += other.rescored;
  resolved += other.resolved;
  full_rows += other.full_rows;
  second_rows += other.second_rows;
}

Packed::Packed(std::size_t entries, std::size_t dim, const Layout& layout) {
  const std::size_t panels = (entries + layout.panel - 1) / layout.panel;
  const std::size_t slots = panels * layout.panel;
  const std::size_t sizes[] = {
      slots * layout.depth * layout.steps(dim),
      slots * sizeof(std::int32_t),
      slots * sizeof(float),
      slots * sizeof(float),
      slots * sizeof(float),
      panels * sizeof(Bound),
      entries * sizeof(float),
      dim * sizeof(double),
      sizeof(Facts),
  };
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    offsets_[i] = bytes;
    bytes += (sizes[i] + 63) / 64 * 64;
  }
}

void Packed::set_base(char* base) {
  const std::size_t* at = offsets_;
  const auto set = [&](auto*& part) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(base + *at++);
  };
  set(codes);
  set(correction);
  set(step);
  set(centred_norm);
  set(residual);
  set(panel_bounds);
  set(norms);
  set(mean);
  set(facts);
}

Engine::Engine(Rows entries, std::size_t k, const Kernel& kernel, std::size_t threads,
               Tuning tuning, const std::function<bool()>& idle, const char* prepared,
               const Lists* lists)
    : entries_(entries), lists_(lists ? *lists : Lists{}), kernel_(kernel), layout_(kernel.layout), k_(k), dim_(entries.dim),
      padded_((entries.dim + 15) / 16 * 16), steps_(layout_.steps(entries.dim)),
      panels_((entries.count + layout_.panel - 1) / layout_.panel),
      panel_bytes_(layout_.panel * layout_.depth * steps_), packed_(entries.count, dim_, layout_) {
  make_rooms(tuning);
  // Panels are visited with a stride near the golden ratio: a sorted vocabulary is then no worse.
  stride_ = std::max<std::size_t>(1, std::size_t(double(panels_) * 0.6180339887));
  const auto common = [](std::size_t a, std::size_t b) {
    while (b) std::swap(a %= b, b);
    return a;
  };
  while (common(stride_, panels_) != 1) ++stride_;
  set_rotation();
  if (prepared) {
    packed_.set_base(const_cast<char*>(prepared));  // which is only read
  } else {
    storage_ = make_large_array<char>(packed_.bytes);
    packed_.set_base(storage_.get());
    pack(threads, idle);
  }
  inverse_scale_ = std::ldexp(1.0, -int(packed_.facts->exponent));
  if (prepared) take_lists();
  mean32_.assign(padded_, 0.0f);
  std::copy(packed_.mean, packed_.mean + dim_, mean32_.begin());
  auto centre = std::make_shared<Centre>();
  centre->vector.assign(padded_, 0.0f);
  centre->bias.assign(panels_ * layout_.panel, 0.0f);
  centre_ = centre;
}

Engine::~Engine() = default;

void Engine::make_rooms(const Tuning& tuning) {
  const std::size_t group = layout_.group;
  // The more candidates a query may have, the fewer queries share out a thread's room.
  const auto room = [&](std::size_t capacity, std::size_t numbers) {
    const std::size_t stride = capacity + (lists_.count ? kPanelsAtOnce : 1) * layout_.panel + 16;
    return Room{std::max(group, numbers / stride / group * group), capacity, stride, true};
  };
  const bool many = entries_.count >= kManyEntries;
  const bool in_lists = lists_.count > 0;
  const std::size_t usual = in_lists ? kCapacityOfLists : many ? kCapacityForMany : kCapacity;
  const std::size_t capacity = (tuning.capacity ? tuning.capacity : usual) + 8 * k_;
  const std::size_t most = tuning.query_block ? tuning.query_block
                           : in_lists         ? kQueriesOfLists
                                              : kernel_.block;
  const std::size_t all = most * room(capacity, 0).stride;
  rooms_ = {room(capacity, in_lists ? all : std::min(all, many ? 2 * kNumbers : kNumbers))};
  const Room& first = rooms_.front();
  first_trigger_ = std::min(std::max(tuning.first_trigger, 2 * k_), capacity);
  const std::size_t more = std::min(8 * capacity, entries_.count);
  if (more <= capacity) return;
  const Room second = room(more, first.queries * first.stride);
  rooms_.front().last = false;
  rooms_.push_back(second);
}

std::size_t Engine::most_candidates() const {
  std::size_t most = 0;
  for (const Room& room : rooms_) most = std::max(most, room.queries * room.stride);
  return most;
}

void Engine::set_rotation() {
  rotation_.dim = dim_;
  if (dim_ >= 16) {
    rotation_.block = 16;
    while (rotation_.block * 2 <= dim_) rotation_.block *= 2;
    std::mt19937_64 random(20240717);
    signs_.resize(2 * rotation_.block);
    for (float& sign : signs_) sign = random() & 1 ? 1.0f : -1.0f;
    rotation_.signs_first = signs_.data();
    rotation_.signs_last = rotation_.block < dim_ ? signs_.data() + rotation_.block : nullptr;
  }
}

void Engine::measure(std::size_t first, std::size_t count, double* largest, double* sums) const {
  const std::size_t bytes = dim_ * type_bytes(entries_.type), stop = first + count;
  for (std::size_t start = first, next; start < stop; start = next) {  // rows that lie together
    const char* const row = static_cast<const char*>(entries_.row(start));
    next = start + 1;
    while (next < stop && entries_.row(next) == row + (next - start) * bytes) ++next;
    kernel_.measure(row, entries_.type, next - start, dim_, largest, sums);
  }
}

void Engine::pack(std::size_t threads, const std::function<bool()>& idle) {
  // All but the codes, which panels clear for themselves: what lies between the parts is zero, too.
  char* const rest = reinterpret_cast<char*>(packed_.correction);
  std::memset(rest, 0, packed_.bytes - std::size_t(rest - storage_.get()));
  Packed::Facts& facts = *packed_.facts;
  // Largest magnitude and mean, in pieces of fixed size: the same for any number of threads.
  constexpr std::size_t piece = 4096;
  const std::size_t pieces = (entries_.count + piece - 1) / piece;
  std::vector<double> largest(pieces, 0.0), sums(pieces * dim_, 0.0);
  const bool measured = for_each_index(pieces, threads, idle, [&](std::size_t p, std::size_t) {
    const std::size_t first = p * piece, count = std::min(piece, entries_.count - first);
    measure(first, count, &largest[p], &sums[p * dim_]);
  });
  if (!measured) throw Interrupted();
  const double top = *std::max_element(largest.begin(), largest.end());
  int exponent = 0;
  if (top > 0) std::frexp(top, &exponent);
  facts.exponent = exponent;
  inverse_scale_ = std::ldexp(1.0, -exponent);
  for (std::size_t p = 0; p < pieces; ++p)
    for (std::size_t i = 0; i < dim_; ++i)
      packed_.mean[i] += std::ldexp(sums[p * dim_ + i] / double(entries_.count), -exponent);
  double square = 0;
  for (std::size_t i = 0; i < dim_; ++i) square += packed_.mean[i] * packed_.mean[i];
  facts.mean_norm = std::sqrt(square) * (1 + 1e-9);
  take_lists();

  std::vector<AlignedVector<float>> work(threads);
  std::vector<AlignedVector<std::int8_t>> codes(threads);
  const bool packed = for_each_index(panels_, threads, idle, [&](std::size_t p, std::size_t worker) {
    work[worker].resize(padded_);
    codes[worker].resize(padded_);
    pack_panel(p, work[worker].data(), codes[worker].data());
  });
  if (!packed) throw Interrupted();
  for (std::size_t p = 0; p < panels_; ++p) {
    facts.largest.norm = std::max(facts.largest.norm, packed_.panel_bounds[p].norm);
    facts.largest.residual = std::max(facts.largest.residual, packed_.panel_bounds[p].residual);
  }
}

// Scale the centres of the lists as the entries are. What they are decides what is packed, not what
// is found: one that is not finite in float32 is taken to be zero.
void Engine::take_lists() {
  largest_centre_ = packed_.facts->mean_norm;
  list_centres_.assign(lists_.count * padded_, 0.0f);
  list_norms_.assign(lists_.count, 0.0f);
  if (lists_.count) largest_centre_ = 0;
  for (std::size_t l = 0; l < lists_.count; ++l) {
    const float* const from = lists_.centres + l * lists_.stride;
    float* const to = list_centres_.data() + l * padded_;
    double square = 0;
    for (std::size_t i = 0; i < dim_; ++i) {
      to[i] = float(double(from[i]) * inverse_scale_);
      square += double(to[i]) * double(to[i]);
    }
    if (!(square <= 0x1p100)) std::fill_n(to, dim_, 0.0f), square = 0;
    list_norms_[l] = above(std::sqrt(square));
    largest_centre_ = std::max(largest_centre_, double(list_norms_[l]));
  }
}

std::size_t Engine::list_of(std::size_t row) const {
  return std::size_t(std::upper_bound(lists_.starts + 1, lists_.starts + lists_.count, row) -
                     lists_.starts - 1);
}

void Engine::pack_panel(std::size_t p, float* work, std::int8_t* codes) {
  std::int8_t* const out = packed_.codes + p * panel_bytes_;
  std::memset(out, 0, panel_bytes_);
  const std::size_t stop = std::min(entries_.count, (p + 1) * layout_.panel);
  const double* centre = packed_.mean;
  std::vector<double> of_list;
  std::size_t list = lists_.count ? list_of(p * layout_.panel) : 0, taken = lists_.count;
  for (std::size_t id = p * layout_.panel; id < stop; ++id) {
    if (lists_.count && (list = list_of(id, list)) != taken) {
      taken = list;
      of_list.assign(list_centre(list), list_centre(list) + dim_);
      centre = of_list.data();
    }
    const PreparedEntry entry = kernel_.prepare_entry(entries_.row(id), entries_.type,
                                                      inverse_scale_, centre, rotation_, work, codes);
    const std::size_t lane = id - p * layout_.panel;
    for (std::size_t i = 0; i < dim_; i += layout_.unit)
      std::memcpy(out + layout_.entry_offset(lane, i), codes + i, layout_.unit);
    packed_.step[id] = entry.step;
    packed_.correction[id] = -kernel_.query_offset * entry.sum;
    packed_.norms[id] = entry.norm;
    packed_.centred_norm[id] = entry.centred_norm;
    packed_.residual[id] = entry.residual;
    Bound& bound = packed_.panel_bounds[p];
    bound.norm = std::max(bound.norm, entry.centred_norm);
    bound.residual = std::max(bound.residual, entry.residual);
  }
}

bool Engine::set_query_centre(const float* vector, std::size_t threads,
                              const std::function<bool()>& idle) {
  auto centre = std::make_shared<Centre>();
  centre->vector.assign(padded_, 0.0f);
  centre->bias.assign(panels_ * layout_.panel, 0.0f);
  std::copy(vector, vector + dim_, centre->vector.begin());
  double square = 0, offset = 0;
  std::vector<double> wide(vector, vector + dim_);
  for (std::size_t i = 0; i < dim_; ++i) {
    square += wide[i] * wide[i];
    offset += wide[i] * packed_.mean[i];
  }
  centre->square = float(square);
  std::vector<double> offsets(lists_.count);
  for (std::size_t l = 0; l < lists_.count; ++l)
    for (std::size_t i = 0; i < dim_; ++i) offsets[l] += wide[i] * double(list_centre(l)[i]);
  if (square > 1e-12) {
    const bool done = for_each_index(panels_, threads, idle, [&](std::size_t p, std::size_t) {
      const std::size_t stop = std::min(entries_.count, (p + 1) * layout_.panel);
      std::size_t list = lists_.count ? list_of(p * layout_.panel) : 0;
      for (std::size_t id = p * layout_.panel; id < stop; ++id)
        with_typed_row(entries_, id, [&](const auto* row) {
          double dot = 0;
          if (lists_.count) list = list_of(id, list);
          if constexpr (sizeof(*row) == 2) dot = kernel_.dot64_f16(wide.data(), row, dim_);
          else if constexpr (sizeof(*row) == 4) dot = kernel_.dot64_f32(wide.data(), row, dim_);
          else dot = kernel_.dot64_f64(wide.data(), row, dim_);
          centre->bias[id] = float(dot * inverse_scale_ - (lists_.count ? offsets[list] : offset));
        });
    });
    if (!done) return false;
    for (float b : centre->bias) centre->largest_bias = std::max(centre->largest_bias, std::fabs(b));
    // Rounding of the float64 sums, which is far below that of storing them in float32.
    centre->largest_bias = above(centre->largest_bias + 1e-3 * std::sqrt(square) *
                                                            (double(packed_.facts->largest.norm) + largest_centre_));
  } else {
    centre->square = 0;
  }
  std::atomic_store(&centre_, std::shared_ptr<const Centre>(centre));
  return true;
}

Panel Engine::panel(std::size_t index, std::size_t next, const Centre& centre) const {
  const std::size_t first = index * layout_.panel;
  return {codes_of(index),
          codes_of(next),
          packed_.correction + first,
          packed_.step + first,
          centre.bias.data() + first,
          packed_.centred_norm + first,
          packed_.residual + first,
          packed_.panel_bounds[index].norm,
          packed_.panel_bounds[index].residual,
          std::uint32_t(first),
          std::uint32_t(std::min(layout_.panel, entries_.count - first))};
}

std::unique_ptr<Workspace> Engine::take_workspace() {
  {
    const std::lock_guard<std::mutex> lock(workspaces_mutex_);
    if (!workspaces_.empty()) {
      std::unique_ptr<Workspace> found = std::move(workspaces_.back());
      workspaces_.pop_back();
      return found;
    }
  }
  return std::unique_ptr<Workspace>(new Workspace(*this));
}

void Engine::give_back(Workspaces& workspaces, std::size_t most) {
  const std::lock_guard<std::mutex> lock(workspaces_mutex_);
  for (auto& workspace : workspaces)
    if (workspace && workspaces_.size() < most) workspaces_.push_back(std::move(workspace));
}

bool Engine::search(const Rows& queries, const Probes* probes, std::size_t threads,
                    const std::function<bool()>& idle, double* values, std::int64_t* ids,
                    Counts& counts, std::vector<std::int64_t>& bad) {
  if (probes) require_entries(lists_, probes->each, k_);
  const std::shared_ptr<const Centre> centre = std::atomic_load(&centre_);
  Workspaces workspaces(threads);
  bool done = search_blocks(rooms_.front(), *centre, queries, probes, nullptr, idle, workspaces,
                            values, ids);
  std::vector<Unsettled> left;
  for (const auto& workspace : workspaces)
    if (workspace) workspace->report(counts, bad, left);
  if (done && !left.empty()) {
    counts.second_rows += left.size();
    done = search_again(*centre, queries, probes, left, idle, workspaces, values, ids);
    for (const auto& workspace : workspaces)
      if (workspace) workspace->report(counts, bad, left);
  }
  give_back(workspaces, threads);
  std::sort(bad.begin(), bad.end());
  return done;
}

bool Engine::search_blocks(const Room& room, const Centre& centre, const Rows& queries,
                           const Probes* probes, const float* thresholds,
                           const std::function<bool()>& idle, Workspaces& workspaces,
                           double* values, std::int64_t* ids) {
  // As many blocks for every thread, as large as they may be.
  const std::size_t threads = workspaces.size(), group = layout_.group;
  const std::size_t turns =
      (queries.count + threads * room.queries - 1) / (threads * room.queries);
  const std::size_t share = std::max<std::size_t>(1, turns * threads);
  const std::size_t block =
      std::max(group, ((queries.count + share - 1) / share + group - 1) / group * group);
  const std::size_t blocks = (queries.count + block - 1) / block;
  return for_each_index(blocks, threads, idle, [&](std::size_t b, std::size_t worker) {
    if (!workspaces[worker]) workspaces[worker] = take_workspace();
    workspaces[worker]->search(room, centre, queries, probes, thresholds, b * block,
                               std::min(queries.count, (b + 1) * block), values, ids);
  });
}

// The queries that are left, side by side, in the second room: as many at a time as all threads have
// room for.
bool Engine::search_again(const Centre& centre, const Rows& queries, const Probes* probes,
                          std::vector<Unsettled>& left, const std::function<bool()>& idle,
                          Workspaces& workspaces, double* values, std::int64_t* ids) {
  std::sort(left.begin(), left.end(),
            [](const Unsettled& a, const Unsettled& b) { return a.row < b.row; });
  const std::size_t most = std::min(left.size(), workspaces.size() * rooms_.back().queries);
  const std::size_t bytes = queries.dim * type_bytes(queries.type);
  std::vector<char> rows(most * bytes);
  std::vector<float> thresholds(most);
  std::vector<std::uint32_t> probed(probes ? most * probes->each : 0);
  std::vector<double> found_values(most * k_);
  std::vector<std::int64_t> found_ids(most * k_);
  for (std::size_t first = 0; first < left.size(); first += most) {
    const std::size_t count = std::min(most, left.size() - first);
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(rows.data() + i * bytes, queries.row(left[first + i].row), bytes);
      thresholds[i] = left[first + i].threshold;
      if (probes)
        std::copy_n(probes->of(left[first + i].row), probes->each, probed.begin() + i * probes->each);
    }
    const Probes others{probed.data(), probes ? probes->each : 0};
    if (!search_blocks(rooms_.back(), centre, {rows.data(), queries.type, count, queries.dim},
                       probes ? &others : nullptr, thresholds.data(), idle, workspaces, found_values.data(), found_ids.data()))
      return false;
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t row = left[first + i].row;
      std::copy_n(found_values.begin() + i * k_, k_, values + row * k_);
      std::copy_n(found_ids.begin() + i * k_, k_, ids + row * k_);
    }
  }
  left.clear();
  return true;
}

bool Engine::intervals(const Rows& queries, double* lower, double* upper) {
  const Room& room = rooms_.front();
  if (room.capacity < entries_.count) return false;
  const std::shared_ptr<const Centre> centre = std::atomic_load(&centre_);
  Workspace workspace(*this);
  for (std::size_t first = 0; first < queries.count; first += room.queries)
    workspace.intervals(room, *centre, queries, first,
                        std::min(queries.count, first + room.queries), lower, upper);
  return true;
}

double Engine::kernel_seconds(std::size_t count, std::size_t threads) {
  const std::shared_ptr<const Centre> centre = std::atomic_load(&centre_);
  const Room& room = rooms_.front();
  const std::size_t blocks = (count + room.queries - 1) / room.queries;
  Workspaces workspaces(std::min(threads, blocks));
  for (auto& workspace : workspaces) workspace = take_workspace();
  const auto start = std::chrono::steady_clock::now();
  for_each_index(blocks, threads, never_stop, [&](std::size_t, std::size_t worker) {
    workspaces[worker]->score_only(room, *centre);
  });
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  give_back(workspaces, threads);
  return seconds.count();
}

std::size_t Engine::memory_bytes(std::size_t threads) const {
  const std::size_t packed = packed_.bytes + panels_ * layout_.panel * sizeof(float) +  // the bias
                             list_centres_.size() * sizeof(float);
  const std::size_t per_query = steps_ * layout_.depth + 192;
  const std::size_t pairs = most_pairs() * (2 * sizeof(Pair) + sizeof(Candidate));
  // A row searched in full keeps a candidate per entry; one searched again is copied before.
  const std::size_t again = rooms_.size() > 1 ? rooms_.back().queries * (8 * dim_ + 16 * k_) : 0;
  return packed + threads * (rooms_.front().queries * per_query + most_candidates() * 12 + pairs + again +
                             most_grouped() * sizeof(std::uint32_t) +
                             entries_.count * sizeof(Candidate));
}

}  // namespace bliss
