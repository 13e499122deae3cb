#include "device.h"

#include <algorithm>

namespace fake_cuda {
namespace {

/** How long the host must have been quiet before what is late or starved runs. */
constexpr auto quiet = std::chrono::microseconds(100);
constexpr size_t starved_stream = 1;

}  // namespace

Device& device() {
  static Device only;
  return only;
}

Device::~Device() {
  {
    const std::lock_guard lock(mutex);
    ending_ = true;
  }
  work_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void Device::reset(const Options& wanted) {
  Lock lock(mutex);
  // A host function may still run, on a device that was lost.
  progress_.wait(lock, [&] { return running_ == nullptr; });
  options = wanted;
  counts = {};
  lost = false;
  memory = {};
  pinned = {};
  // A lost device takes nothing back.
  given.clear();
  streams_.clear();
  queues_.assign(wanted.hardware_queues, {});
  streams_made_ = 0;
  host_ = {};
  random_.seed(wanted.seed);
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
}

cudaError_t Device::begin_call(Lock&, bool waits) {
  last_call_ = Time::now();
  ++counts.calls;
  if (!lost && counts.calls == options.failing_call) {
    if (!options.for_good) return waits ? cudaSuccess : cudaErrorUnknown;
    lost = true;
    for (auto& queue : queues_) queue.clear();
    progress_.notify_all();
  }
  return lost ? cudaErrorIllegalAddress : cudaSuccess;
}

Stream* Device::add_stream(Lock&) {
  streams_.push_back(std::make_unique<Stream>(Stream{.number = streams_made_++, .clock = {}}));
  if (options.hardware_queues == 0) queues_.emplace_back();
  return streams_.back().get();
}

void Device::remove_stream(Lock& lock, Stream* stream) {
  progress_.wait(lock, [&] { return stream != running_ && (stream->pending == 0 || lost); });
  std::erase_if(streams_, [&](const auto& one) { return one.get() == stream; });
}

void Device::enqueue(Lock&, Stream* stream, std::string what, Run run, bool on_host) {
  stream->clock.join(host_);
  const uint64_t number = stream->clock.tick(stream->number);
  ++stream->pending;
  what += " of stream " + std::to_string(stream->number) + " (" + std::to_string(number) + ")";
  queues_[stream->number % queues_.size()].push_back(
      {stream, ++operations_made_, {stream->number, number, std::move(what), stream->clock}, std::move(run), nullptr, nullptr, on_host});
  work_.notify_one();
}

void Device::record(Lock& lock, Stream* stream, Event& event) {
  enqueue(lock, stream, "an event", [](const Moment&) {});
  Operation& operation = queues_[stream->number % queues_.size()].back();
  event.last = std::make_shared<Happening>(Happening{.done = false, .what = operation.moment.what, .clock = stream->clock, .when = {}});
  operation.happening = event.last;
}

void Device::hold(Lock& lock, Stream* stream, const Event& event) {
  if (!event.last || !counts_as_wait(stream->clock, event.last->clock, "stream " + std::to_string(stream->number) + " for " + event.last->what)) return;
  stream->clock.join(event.last->clock);
  enqueue(lock, stream, "a wait", [](const Moment&) {});
  queues_[stream->number % queues_.size()].back().waits_for = event.last;
}

bool Device::counts_as_wait(const Clock& waiting, const Clock& waited, std::string what) {
  if (waiting.has_seen(waited)) return false;
  counts.waits.push_back(std::move(what));
  return counts.waits.size() != options.ignored_wait;
}

cudaError_t Device::wait_until(Lock& lock, const Clock& clock, const std::function<bool()>& done) {
  ++hosts_waiting_;
  work_.notify_one();
  progress_.wait(lock, [&] { return lost || done(); });
  --hosts_waiting_;
  if (lost) return cudaErrorIllegalAddress;
  join_host(clock);
  return cudaSuccess;
}

cudaError_t Device::wait(Lock& lock, Stream* stream) {
  return counts_as_wait(host_, stream->clock, "the host for stream " + std::to_string(stream->number)) ? wait_for(lock, stream) : cudaSuccess;
}

cudaError_t Device::wait_for(Lock& lock, Stream* stream) {
  const Clock clock = stream->clock;
  return wait_until(lock, clock, [stream] { return stream->pending == 0; });
}

cudaError_t Device::wait(Lock& lock, const Event& event) {
  if (!event.last || !counts_as_wait(host_, event.last->clock, "the host for " + event.last->what)) return cudaSuccess;
  const auto last = event.last;
  return wait_until(lock, last->clock, [last] { return last->done; });
}

cudaError_t Device::wait_for_all(Lock& lock) {
  ++hosts_waiting_;
  work_.notify_one();
  progress_.wait(lock, [&] { return lost || std::ranges::all_of(streams_, [](const auto& stream) { return stream->pending == 0; }); });
  --hosts_waiting_;
  for (const auto& stream : streams_) join_host(stream->clock);
  return lost ? cudaErrorIllegalAddress : cudaSuccess;
}

bool Device::has_happened(Lock&, const Event& event) {
  if (!event.last || !event.last->done) return false;
  join_host(event.last->clock);
  return true;
}

bool Device::has_ended(Lock&, const Stream* stream) {
  if (stream->pending > 0) return false;
  join_host(stream->clock);
  return true;
}

std::deque<Operation>* Device::choose(Lock& lock) {
  std::vector<std::deque<Operation>*> ready, preferred;
  for (auto& queue : queues_) {
    if (queue.empty() || !may_run(queue.front())) continue;
    ready.push_back(&queue);
    if (queue.front().stream->number != starved_stream) preferred.push_back(&queue);
  }
  if (ready.empty()) {
    work_.wait(lock);
    return nullptr;
  }
  if (options.order == Order::queued) {
    return *std::ranges::min_element(ready, {}, [](const auto* queue) { return queue->front().age; });
  }
  const bool waits = options.order == Order::late || (options.order == Order::starved && preferred.empty());
  const auto due = last_call_ + quiet;
  if (waits && hosts_waiting_ == 0 && Time::now() < due) {
    work_.wait_until(lock, due);
    return nullptr;
  }
  if (options.order == Order::starved && !preferred.empty()) ready = preferred;
  return ready[random_() % ready.size()];
}

void Device::run() {
  Lock lock(mutex);
  while (!ending_) {
    auto* const queue = choose(lock);
    if (queue == nullptr) continue;
    Operation operation = std::move(queue->front());
    queue->pop_front();
    if (operation.on_host) join_host(operation.moment.clock);
    running_ = operation.stream;
    // All else runs under the lock: memory does not go away beneath it.
    if (operation.on_host) lock.unlock();
    operation.run(operation.moment);
    if (operation.on_host) lock.lock();
    if (operation.happening) {
      operation.happening->done = true;
      operation.happening->when = Time::now();
    }
    --operation.stream->pending;
    running_ = nullptr;
    progress_.notify_all();
  }
}

}  // namespace fake_cuda
