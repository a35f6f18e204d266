// Python bindings of the native search.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>

#include "engine.h"
#include "tail.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// Rows come as the address of a C-contiguous array that the caller keeps alive.
bliss::Rows rows_at(std::uintptr_t address, int bytes, std::size_t count, std::size_t dim) {
  const bliss::Type type = bytes == 2   ? bliss::Type::float16
                           : bytes == 4 ? bliss::Type::float32
                                        : bliss::Type::float64;
  return {reinterpret_cast<const void*>(address), type, count, dim};
}

bliss::Engine* make_engine(std::uintptr_t address, int bytes, std::size_t count, std::size_t dim,
                           std::size_t k, const std::string& kernel, std::size_t threads,
                           std::size_t query_block, std::size_t capacity,
                           std::size_t first_trigger) {
  const bliss::Kernel* found = bliss::find_kernel(kernel.c_str());
  if (!found) throw nb::value_error("this processor lacks what the kernel needs");
  bliss::Tuning tuning;
  if (query_block) tuning.query_block = query_block;
  if (capacity) tuning.capacity = capacity;
  if (first_trigger) tuning.first_trigger = first_trigger;
  nb::gil_scoped_release release;
  return new bliss::Engine(rows_at(address, bytes, count, dim), k, *found, threads, tuning);
}

using Counters = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t>;

std::tuple<Counters, std::vector<std::int64_t>> search(
    bliss::Engine& engine, std::uintptr_t address, int bytes, std::size_t count, std::size_t dim,
    std::size_t threads, std::uintptr_t values, std::uintptr_t ids) {
  bliss::Counts counts;
  std::vector<std::int64_t> bad;
  bool done;
  {
    nb::gil_scoped_release release;
    const auto idle = [] {
      nb::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() == 0;
    };
    done = engine.search(rows_at(address, bytes, count, dim), threads, idle,
                         reinterpret_cast<double*>(values), reinterpret_cast<std::int64_t*>(ids),
                         counts, bad);
  }
  if (!done) throw nb::python_error();
  return {{counts.candidates, counts.rescored, counts.resolved, counts.full_rows}, bad};
}

void score_tail(std::uintptr_t similarities, std::uintptr_t ids, std::uintptr_t scale,
                std::uintptr_t shift, std::uintptr_t internal, std::size_t rows, std::size_t k,
                std::size_t classes, double lambda, std::size_t threads, std::uintptr_t anomaly,
                std::uintptr_t nearest, std::uintptr_t nearest_internal,
                std::uintptr_t nearest_external) {
  const bliss::Tail tail{reinterpret_cast<const float*>(similarities),
                         reinterpret_cast<const std::int64_t*>(ids),
                         reinterpret_cast<const float*>(scale),
                         reinterpret_cast<const float*>(shift),
                         reinterpret_cast<const double*>(internal),
                         rows, k, classes, lambda,
                         reinterpret_cast<double*>(anomaly),
                         reinterpret_cast<std::int64_t*>(nearest),
                         reinterpret_cast<double*>(nearest_internal),
                         reinterpret_cast<double*>(nearest_external)};
  bool done;
  {
    nb::gil_scoped_release release;
    const auto idle = [] {
      nb::gil_scoped_acquire acquire;
      return PyErr_CheckSignals() == 0;
    };
    done = bliss::score_tail(tail, threads, idle);
  }
  if (!done) throw nb::python_error();
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Integer kernels and rescoring of the certified exact search.";
  m.def("kernel_name", [] {
    const bliss::Kernel* kernel = bliss::find_kernel("");
    return std::string(kernel ? kernel->name : "");
  }, "Name of the best kernel this processor can run; empty where there is none.");
  m.def("has_kernel", [](const std::string& name) {
    return bliss::find_kernel(name.c_str()) != nullptr;
  });
  nb::class_<bliss::Engine>(m, "Engine")
      .def_prop_ro("kernel", [](const bliss::Engine& e) { return std::string(e.kernel().name); })
      .def_prop_ro("query_block", &bliss::Engine::query_block)
      .def("memory_bytes", &bliss::Engine::memory_bytes, "threads"_a)
      .def("set_query_centre", [](bliss::Engine& e, std::uintptr_t centre, std::size_t threads) {
        nb::gil_scoped_release release;
        e.set_query_centre(reinterpret_cast<const float*>(centre), threads);
      })
      .def("kernel_seconds", &bliss::Engine::kernel_seconds, "count"_a, "threads"_a,
           nb::call_guard<nb::gil_scoped_release>())
      .def("search", &search);
  m.def("score_tail", &score_tail);
  m.def("make_engine", &make_engine, nb::rv_policy::take_ownership);
}
