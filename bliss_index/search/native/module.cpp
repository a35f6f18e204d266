// Python bindings of the native search.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <memory>
#include <string>
#include <tuple>

#include "engine.h"
#include "floating_point.h"
#include "score_kernel.h"
#include "variances.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Rows come as the address of a C-contiguous array that the caller keeps alive, or, where they are
// scattered, as that of an array of the rows' addresses.
bliss::Rows rows_at(std::uintptr_t address, int bytes, std::size_t count, std::size_t dim,
                    bool scattered = false) {
  const bliss::Type type = bytes == 2   ? bliss::Type::float16
                           : bytes == 4 ? bliss::Type::float32
                                        : bliss::Type::float64;
  if (scattered)
    return {nullptr, type, count, dim, reinterpret_cast<const void* const*>(address)};
  return {reinterpret_cast<const void*>(address), type, count, dim};
}

template <class T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Run something that asks its argument now and then whether to go on, without the interpreter lock.
template <class Work>
void run_interruptible(Work work) {
  bool done;
  {
    nb::gil_scoped_release release;
    const bliss::DefaultFloatingPoint unit;
    done = work([] {
      nb::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() == 0;
    });
  }
  if (!done) throw nb::python_error();
}

bliss::Engine* make_engine(std::uintptr_t address, bool scattered, int bytes, std::size_t count,
                           std::size_t dim, std::size_t k, const std::string& kernel, std::size_t threads,
                           std::size_t query_block, std::size_t capacity,
                           std::size_t first_trigger, std::uintptr_t prepared,
                           std::size_t prepared_bytes, std::size_t lists, std::uintptr_t starts,
                           std::uintptr_t ids, std::uintptr_t centres, std::size_t centre_stride) {
  const bliss::Kernel* found = bliss::find_kernel(kernel.c_str());
  if (!found) throw nb::value_error("this processor lacks what the kernel needs");
  if (prepared && (prepared % 64 || prepared_bytes != bliss::Packed(count, dim, found->layout).bytes))
    throw nb::value_error("what was prepared is not of these entries");
  bliss::Tuning tuning;
  if (query_block) tuning.query_block = query_block;
  if (capacity) tuning.capacity = capacity;
  if (first_trigger) tuning.first_trigger = first_trigger;
  const bliss::Lists in{lists, at<const std::uint32_t>(starts), at<const std::uint32_t>(ids),
                        at<const float>(centres), centre_stride};
  std::unique_ptr<bliss::Engine> engine;
  run_interruptible([&](const std::function<bool()>& idle) {
    try {
      engine = std::make_unique<bliss::Engine>(rows_at(address, bytes, count, dim, scattered), k,
                                               *found, threads, tuning, idle, at<const char>(prepared),
                                               lists ? &in : nullptr);
    } catch (const bliss::Interrupted&) {
      return false;
    }
    return true;
  });
  return engine.release();
}

using Counters = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

std::tuple<Counters, std::vector<std::int64_t>> search(
    bliss::Engine& engine, std::uintptr_t address, bool scattered, int bytes, std::size_t count,
    std::size_t dim, std::size_t threads, std::uintptr_t values, std::uintptr_t ids, std::uintptr_t probed,
    std::size_t each) {
  bliss::Counts counts;
  std::vector<std::int64_t> bad;
  const bliss::Probes probes{at<const std::uint32_t>(probed), each};
  run_interruptible([&](const std::function<bool()>& idle) {
    return engine.search(rows_at(address, bytes, count, dim, scattered), probed ? &probes : nullptr, threads,
                         idle, at<double>(values), at<std::int64_t>(ids), counts, bad);
  });
  return {{counts.candidates, counts.rescored, counts.resolved, counts.full_rows, counts.second_rows}, bad};
}

bliss::ScoreKernel* make_score_kernel(std::uintptr_t texts, std::uintptr_t mu, std::uintptr_t sigma,
                       std::size_t classes, std::size_t dim, double lambda,
                       const std::string& name) {
  const bliss::Kernel* kernel = bliss::find_kernel(name.c_str());
  if (!kernel) throw nb::value_error("this processor lacks what every kernel needs");
  const bliss::DefaultFloatingPoint unit;
  return new bliss::ScoreKernel(at<const double>(texts), at<const double>(mu), at<const double>(sigma),
                         classes, dim, lambda, *kernel);
}

void score_images(const bliss::ScoreKernel& kernel, std::uintptr_t images, int bytes, std::size_t count,
                std::size_t dim, std::uintptr_t similarities, std::uintptr_t ids, std::size_t k,
                std::uintptr_t places, std::size_t kept_rows, std::uintptr_t kept,
                std::uintptr_t fresh, std::size_t threads,
                std::uintptr_t anomaly, std::uintptr_t nearest, std::uintptr_t internal,
                std::uintptr_t external) {
  run_interruptible([&](const std::function<bool()>& idle) {
    return kernel.score(rows_at(images, bytes, count, dim),
                      {at<const float>(similarities), at<const std::int64_t>(ids), count, k,
                       {at<const std::int64_t>(places), kept_rows, at<const float>(kept),
                        at<const float>(fresh)}},
                      threads, idle,
                      {at<double>(anomaly), at<std::int64_t>(nearest), at<double>(internal),
                       at<double>(external)});
  });
}

void internal_scores(const bliss::ScoreKernel& kernel, std::uintptr_t images, int bytes, std::size_t count,
                     std::size_t dim, std::size_t threads, std::uintptr_t out) {
  run_interruptible([&](const std::function<bool()>& idle) {
    return kernel.internal(rows_at(images, bytes, count, dim), threads, idle, at<double>(out));
  });
}

void class_variances(std::uintptr_t texts, int bytes, std::size_t count, std::size_t dim,
                     const std::vector<std::uintptr_t>& rows, const std::vector<std::size_t>& images,
                     std::uintptr_t means, const std::string& name, std::size_t threads,
                     std::uintptr_t mu, std::uintptr_t squares) {
  const bliss::Kernel* kernel = bliss::find_kernel(name.c_str());
  if (!kernel) throw nb::value_error("this processor lacks what every kernel needs");
  std::vector<bliss::ClassImages> classes;
  for (std::size_t c = 0; c < rows.size(); ++c)
    classes.push_back({at<const double>(rows[c]), images[c], at<const double>(means) + c * dim});
  run_interruptible([&](const std::function<bool()>& idle) {
    return bliss::class_variances(rows_at(texts, bytes, count, dim), classes, *kernel, threads, idle,
                                  at<double>(mu), at<double>(squares));
  });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Integer kernels and rescoring of the certified exact search.";
  m.def("packed_bytes", [](const std::string& kernel, std::size_t count, std::size_t dim) {
    const bliss::Kernel* found = bliss::find_kernel(kernel.c_str());
    return found ? bliss::Packed(count, dim, found->layout).bytes : 0;
  }, "Bytes that a kernel packs of so many entries; 0 where it cannot run here.");
  m.attr("packed_version") = bliss::Packed::kVersion;
  m.attr("packed_lists_version") = bliss::Packed::kListsVersion;
  m.def("kernel_names", [] {
    std::vector<std::string> names;
    for (const bliss::Kernel* kernel : bliss::usable_kernels()) names.push_back(kernel->name);
    return names;
  }, "Names of the kernels that this processor can run, the fastest first.");
  nb::class_<bliss::Engine>(m, "Engine")
      .def_prop_ro("kernel", [](const bliss::Engine& e) { return std::string(e.kernel().name); })
      .def_prop_ro("query_block", &bliss::Engine::query_block)
      .def_prop_ro("packed", [](const bliss::Engine& e) {
        return std::make_tuple(reinterpret_cast<std::uintptr_t>(e.packed()), e.packed_bytes());
      })
      .def("memory_bytes", &bliss::Engine::memory_bytes, "threads"_a)
      .def("set_query_centre", [](bliss::Engine& e, std::uintptr_t centre, std::size_t threads) {
        run_interruptible([&](const std::function<bool()>& idle) {
          return e.set_query_centre(reinterpret_cast<const float*>(centre), threads, idle);
        });
      })
      .def("kernel_seconds", &bliss::Engine::kernel_seconds, "count"_a, "threads"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("intervals", [](bliss::Engine& e, std::uintptr_t address, int bytes, std::size_t count,
                           std::size_t dim, std::uintptr_t lower, std::uintptr_t upper) {
        const bliss::DefaultFloatingPoint unit;
        return e.intervals(rows_at(address, bytes, count, dim), at<double>(lower), at<double>(upper));
      })
      .def("search", &search);
  nb::class_<bliss::ScoreKernel>(m, "ScoreKernel").def("score", &score_images).def("internal", &internal_scores);
  m.def("make_score_kernel", &make_score_kernel, nb::rv_policy::take_ownership);
  m.def("class_variances", &class_variances);
  m.def("make_engine", &make_engine, nb::rv_policy::take_ownership);
}
