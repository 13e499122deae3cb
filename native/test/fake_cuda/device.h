#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "fake.h"
#include "hosts.h"

namespace fake_cuda {

using Time = std::chrono::steady_clock;

/** What an event stands for since it was recorded last. */
struct Happening {
  bool done = false;
  Name name;
  Clock clock;
  Time::time_point when;
};

struct Event {
  std::shared_ptr<Happening> last;
};

struct Stream {
  size_t number;
  /** Everything that is queued in it, and what that waits for. */
  Clock clock;
  size_t pending = 0;
  bool has_host_functions = false;
};

/** A copy from page-locked memory of the host, that some of its threads may not know to have ended. */
struct HostRead {
  std::byte* begin;
  size_t bytes;
  std::function<size_t()> checksum;
  size_t sum;
  Name name;
};

struct Operation {
  Stream* stream;
  /** Grows with each operation of any stream. */
  uint64_t age;
  Moment moment;
  Run run;
  /** Does not run before this has happened. */
  std::shared_ptr<Happening> waits_for;
  /** Happens with it. */
  std::shared_ptr<Happening> happening;
  /** Runs without the device's lock, and knows of all before it. */
  bool on_host = false;
};

/**
 * The device: its streams run an operation at a time, on a thread of its own or, what is to run at once, at the end of the call that
 * queued it; host functions on its own alone. What has a lock as argument is called with the lock.
 */
class Device {
 public:
  using Lock = std::unique_lock<std::mutex>;

  Device() { leave_out(mutex); }
  ~Device();
  void reset(const Options& options);
  /** To be called by what can be the first call of the runtime. */
  void note_environment();
  Report report(Lock&) const;

  /** Counts a call, and makes it fail if it is to; one that only waits (`waits`) fails for good or not at all. */
  cudaError_t begin_call(Lock& lock, bool waits);
  /** Runs what is not to wait, and wakes the device's thread for the rest. */
  void end_call(Lock& lock);
  /** Returns what every call says from now on. Nothing that is queued runs. */
  cudaError_t lose(Lock&);
  Stream* add_stream(Lock&);
  void remove_stream(Lock& lock, Stream* stream);
  void enqueue(Lock&, Stream* stream, const char* kind, Run run, bool on_host = false);
  void record(Lock&, Stream* stream, Event& event);
  void hold(Lock&, Stream* stream, const Event& event);
  /** The last operation of the stream reads memory of the host, which must stay as it is until a thread knows that it has. */
  void note_host_read(Lock&, Stream* stream, std::byte* begin, size_t bytes, std::function<size_t()> checksum);
  /** Blocks the thread until the stream has ended, or does not if that wait is to be ignored. */
  cudaError_t wait(Lock& lock, Stream* stream);
  cudaError_t wait(Lock& lock, const Event& event);
  /** As the first, always. */
  cudaError_t wait_for(Lock& lock, Stream* stream);
  cudaError_t wait_for_all(Lock& lock);
  bool has_happened(Lock&, const Event& event) const { return event.last && event.last->done; }
  /** Tells the host nothing that it could count on: who asks whether a stream has ended by now does not wait for it. */
  bool has_ended(Lock&, const Stream* stream) const { return stream->pending == 0; }
  /** Whether the thread has waited for it, or another one that it has synchronised with since. */
  bool knows(Lock&, const Event& event) const { return event.last && this_host().clock.has_seen(event.last->clock); }
  /** The calling thread's own access, if the memory is page-locked. */
  void access_by_host(Lock&, const void* begin, size_t bytes, bool writes);
  /** Runs nothing as long as it is held. */
  void hold_all(Lock&, bool held);

  std::mutex mutex;
  Options options;
  Report counts;
  bool lost = false;
  Memory memory;
  /** Page-locked memory of the host. */
  Memory pinned;
  /** Of both, what this device gave. Large pieces are used again: to have them from the system takes longer than what is tested. */
  class Pieces {
   public:
    /** Null: there is no memory. */
    void* give(size_t bytes);
    void take_back(void* memory);
    void take_all_back();

   private:
    using Piece = std::unique_ptr<void, decltype(&std::free)>;
    std::map<void*, std::pair<size_t, Piece>> given_;
    std::multimap<size_t, Piece> kept_;
  };
  Pieces pieces;

 private:
  void run();
  bool may_run(const Operation& operation) const { return !operation.waits_for || operation.waits_for->done; }
  /** The queue whose head runs next; null: none may, at least not before `begins_at_`. */
  std::deque<Operation>* choose(Lock&);
  void run_next(Lock& lock, std::deque<Operation>& queue);
  /** True, and counted, if the wait orders anything and is not the one to ignore. */
  template <typename Text>
  bool counts_as_wait(const Clock& waiting, const Clock& waited, const Text& text);
  cudaError_t wait_until(Lock& lock, const Clock& clock, const std::function<bool()>& done);

  std::condition_variable work_, progress_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::deque<Operation>> queues_;
  size_t streams_made_ = 0, streams_used_ = 0;
  bool environment_noted_ = false;
  /** Of choose(): all queues whose head may run, and those but the starved one. */
  struct {
    std::vector<std::deque<Operation>*> ready, preferred;
  } choices_;
  std::vector<HostRead> host_reads_;
  uint64_t operations_made_ = 0;
  /** Whose host function runs now. */
  Stream* running_ = nullptr;
  size_t hosts_waiting_ = 0;
  bool held_ = false;
  /** Until there is an operation that may run, or a thread waits. */
  bool sleeps_ = false;
  /** Nothing runs before, unless a thread of the host waits. */
  Time::time_point begins_at_;
  Time::time_point last_call_;
  std::mt19937_64 random_;
  bool ending_ = false;
  std::thread thread_;
};

Device& device();

}  // namespace fake_cuda
