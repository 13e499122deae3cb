#include "addon/process.h"

#include <unistd.h>

#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "runtime/error.h"

namespace switchyard::addon {

namespace {

std::mutex mutex;
int threads_wanted = 0;
ThreadPool* running = nullptr;

/** Half of the machine's memory, for processes that set no bound of their own. */
size_t default_limit() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) / 2 * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

SlabArena& arena() {
  static auto* const instance = new SlabArena(default_limit());
  return *instance;
}

ThreadPool& pool() {
  const std::lock_guard lock(mutex);
  if (!running) {
    if (threads_wanted == 0) threads_wanted = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    running = new ThreadPool(threads_wanted);
  }
  return *running;
}

void configure(size_t slab_bytes_max, std::string slab_setting, int threads) {
  {
    const std::lock_guard lock(mutex);
    if (running && running->threads() != threads) {
      throw_invalid("threads", threads, std::to_string(running->threads()) + ", as the pool runs already");
    }
    threads_wanted = threads;
  }
  arena().set_limit(slab_bytes_max, std::move(slab_setting));
}

}  // namespace switchyard::addon
