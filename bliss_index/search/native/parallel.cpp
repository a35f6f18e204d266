#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "engine.h"
#include "floating_point.h"

namespace bliss {

bool for_each_index(std::size_t count, std::size_t threads, const std::function<bool()>& idle,
                    const std::function<void(std::size_t, std::size_t)>& body) {
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  std::size_t running = std::min(threads, count);
  std::exception_ptr failure;
  const auto work = [&](std::size_t worker) {
    const DefaultFloatingPoint unit;
    try {
      while (!stop.load(std::memory_order_relaxed)) {
        const std::size_t index = next.fetch_add(1);
        if (index >= count) break;
        body(index, worker);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      stop = true;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    --running;
    finished.notify_all();
  };

  std::vector<std::thread> workers;
  const std::size_t wanted = running;
  for (std::size_t i = 0; i < wanted; ++i) {
    try {
      workers.emplace_back(work, i);
    } catch (const std::system_error&) {  // no more threads to be had: fewer do the work
      const std::lock_guard<std::mutex> lock(mutex);
      running -= wanted - i;
      break;
    }
  }
  bool interrupted = false;
  const DefaultFloatingPoint unit;
  if (workers.empty())
    for (std::size_t i = 0; i < count && !interrupted; ++i) {
      body(i, 0);
      interrupted = !idle();
    }
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (running > 0) {
      finished.wait_for(lock, std::chrono::milliseconds(100), [&] { return running == 0; });
      if (running == 0) break;
      lock.unlock();
      if (!interrupted && !idle()) {
        interrupted = true;
        stop = true;
      }
      lock.lock();
    }
  }
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
  return !interrupted;
}

}  // namespace bliss
