// A clock for each thread of the host, which learns from others as the program's threads synchronise: by mutexes, by conditions, by starting
// and joining threads. Atomics and futures are not seen: what is ordered by them alone is taken for unordered.
#include "hosts.h"

#include <dlfcn.h>
#include <pthread.h>

#include <deque>
#include <memory>
#include <unordered_map>

namespace fake_cuda {
namespace {

/** What the program would call if this were not in its place. Conditions have two versions; this is the one that programs are linked with. */
template <typename Function>
Function* original(const char* name, const char* version = nullptr) {
  void* const found = version != nullptr ? dlvsym(RTLD_NEXT, name, version) : nullptr;
  return reinterpret_cast<Function*>(found != nullptr ? found : dlsym(RTLD_NEXT, name));
}

int lock_unseen(pthread_mutex_t* mutex) {
  static auto* const lock = original<int(pthread_mutex_t*)>("pthread_mutex_lock");
  return lock(mutex);
}
int unlock_unseen(pthread_mutex_t* mutex) {
  static auto* const unlock = original<int(pthread_mutex_t*)>("pthread_mutex_unlock");
  return unlock(mutex);
}

/** Never ends: threads that do not end lock mutexes to the last. */
struct Known {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  /** Grows when all begin anew. */
  uint64_t generation = 1;
  size_t threads = 0;
  std::deque<Host> hosts;
  const pthread_mutex_t* left_out = nullptr;
  /** What was known to who unlocked it last. One at the address of an older one takes over what that knew. */
  std::unordered_map<const pthread_mutex_t*, Clock> unlocked;
  std::unordered_map<pthread_t, Clock> ended;
};

/** What is known, for one thread at a time. */
class Access {
 public:
  Access() { lock_unseen(&known().mutex); }
  ~Access() { unlock_unseen(&known().mutex); }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

  Known* operator->() const { return &known(); }

  Host& this_host() const {
    thread_local uint64_t generation = 0;
    thread_local Host* host = nullptr;
    if (generation != known().generation) {
      generation = known().generation;
      host = &known().hosts.emplace_back(Host{.thread = known().threads++, .clock = {}});
    }
    return *host;
  }

 private:
  static Known& known() {
    static Known* const only = new Known;
    return *only;
  }
};

void has_locked(const pthread_mutex_t* mutex) {
  const Access known;
  const auto found = known->unlocked.find(mutex);
  if (found != known->unlocked.end()) known.this_host().clock.join(found->second);
}

void will_unlock(const pthread_mutex_t* mutex) {
  const Access known;
  if (mutex != known->left_out) known->unlocked[mutex] = known.this_host().clock;
}

template <typename Wait>
int wait_unlocked(pthread_mutex_t* mutex, Wait wait) {
  will_unlock(mutex);
  const int status = wait();
  has_locked(mutex);
  return status;
}

struct Start {
  void* (*run)(void*);
  void* argument;
  Clock clock;
};

void* run_thread(void* data) {
  const std::unique_ptr<Start> start(static_cast<Start*>(data));
  this_host().clock.join(start->clock);
  void* const result = start->run(start->argument);
  const Access known;
  known->ended[pthread_self()] = known.this_host().clock;
  return result;
}

}  // namespace

Host& this_host() { return Access().this_host(); }

void begin_host_function(const Clock& before) {
  const Access known;
  known.this_host() = {.thread = known->threads++, .clock = before};
}

void forget_hosts() {
  const Access known;
  ++known->generation;
  known->threads = 0;
  known->hosts.clear();
  known->unlocked.clear();
  known->ended.clear();
}

void leave_out(std::mutex& mutex) { Access()->left_out = mutex.native_handle(); }

}  // namespace fake_cuda

using namespace fake_cuda;

extern "C" {

int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  const int status = lock_unseen(mutex);
  if (status == 0) has_locked(mutex);
  return status;
}

int pthread_mutex_trylock(pthread_mutex_t* mutex) noexcept {
  static auto* const trylock = original<int(pthread_mutex_t*)>("pthread_mutex_trylock");
  const int status = trylock(mutex);
  if (status == 0) has_locked(mutex);
  return status;
}

int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept {
  will_unlock(mutex);
  return unlock_unseen(mutex);
}

int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex) {
  static auto* const wait = original<int(pthread_cond_t*, pthread_mutex_t*)>("pthread_cond_wait", "GLIBC_2.3.2");
  return wait_unlocked(mutex, [=] { return wait(condition, mutex); });
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* end) {
  static auto* const wait = original<int(pthread_cond_t*, pthread_mutex_t*, const timespec*)>("pthread_cond_timedwait", "GLIBC_2.3.2");
  return wait_unlocked(mutex, [=] { return wait(condition, mutex, end); });
}

int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock, const timespec* end) {
  static auto* const wait = original<int(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*)>("pthread_cond_clockwait");
  return wait_unlocked(mutex, [=] { return wait(condition, mutex, clock, end); });
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) noexcept {
  static auto* const create = original<int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*)>("pthread_create");
  auto start = std::make_unique<Start>(Start{run, argument, this_host().clock});
  const int status = create(thread, attributes, run_thread, start.get());
  if (status == 0) start.release();
  return status;
}

int pthread_join(pthread_t thread, void** result) {
  static auto* const join = original<int(pthread_t, void**)>("pthread_join");
  const int status = join(thread, result);
  const Access known;
  const auto found = known->ended.find(thread);
  if (status == 0 && found != known->ended.end()) known.this_host().clock.join(known->ended.extract(found).mapped());
  return status;
}

}  // extern "C"
