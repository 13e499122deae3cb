#include "device.h"

#include <algorithm>
#include <utility>

namespace fake_cuda {
namespace {

/** How long the host must have been quiet before what is late or starved runs, and the most that what is random waits. */
constexpr auto quiet = std::chrono::microseconds(100);
constexpr size_t starved_stream = 1;
constexpr const char* event_name = "an event";
constexpr const char* wait_name = "a wait";
constexpr const char* host_access_name = "the host's access";

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
  pieces.take_all_back();
  streams_.clear();
  queues_.assign(wanted.hardware_queues, {});
  streams_made_ = 0;
  streams_used_ = 0;
  environment_noted_ = false;
  unsetenv("CUDA_DEVICE_MAX_CONNECTIONS");
  held_ = false;
  begins_at_ = {};
  forget_hosts();
  host_reads_.clear();
  random_.seed(wanted.seed);
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
}

void* Device::Pieces::give(size_t bytes) {
  const auto found = kept_.find(bytes);
  Piece piece = found != kept_.end() ? std::move(found->second) : Piece(std::aligned_alloc(256, (bytes + 255) / 256 * 256), std::free);
  if (found != kept_.end()) kept_.erase(found);
  void* const memory = piece.get();
  if (memory != nullptr) given_.emplace(memory, std::pair(bytes, std::move(piece)));
  return memory;
}

void Device::Pieces::take_back(void* memory) {
  constexpr size_t kept_min = size_t{1} << 20;
  auto piece = given_.extract(memory);
  if (!piece.empty() && piece.mapped().first >= kept_min) kept_.emplace(piece.mapped().first, std::move(piece.mapped().second));
}

void Device::Pieces::take_all_back() {
  while (!given_.empty()) take_back(given_.begin()->first);
}

void Device::note_environment() {
  const Lock lock(mutex);
  if (std::exchange(environment_noted_, true)) return;
  const char* const connections = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
  if (connections != nullptr) counts.connections = connections;
}

Report Device::report(Lock&) const {
  Report result = counts;
  result.hazards = memory.hazards;
  result.hazards.insert(result.hazards.end(), pinned.hazards.begin(), pinned.hazards.end());
  result.streams = streams_made_;
  result.streams_unused = streams_made_ - streams_used_;
  return result;
}

cudaError_t Device::begin_call(Lock& lock, bool waits) {
  last_call_ = Time::now();
  ++counts.calls;
  if (!lost && counts.calls == options.failing_call) {
    if (!options.for_good) return waits ? cudaSuccess : cudaErrorUnknown;
    return lose(lock);
  }
  return lost ? cudaErrorIllegalAddress : cudaSuccess;
}

void Device::end_call(Lock& lock) {
  // Beside a host function the device's thread alone goes on: what is queued behind that must wait for it.
  if (running_ == nullptr && (options.order == Order::queued || options.order == Order::starved)) {
    for (auto* queue = choose(lock); queue != nullptr && !queue->front().on_host; queue = choose(lock)) run_next(lock, *queue);
  }
  const bool is_idle = held_ || std::ranges::none_of(queues_, [this](const auto& queue) { return !queue.empty() && may_run(queue.front()); });
  // Once, for to wake it for each operation would be most of the work.
  if (!is_idle && std::exchange(sleeps_, false)) work_.notify_one();
}

cudaError_t Device::lose(Lock&) {
  lost = true;
  counts.lost_at = last_call_;
  for (auto& queue : queues_) queue.clear();
  progress_.notify_all();
  return cudaErrorIllegalAddress;
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

void Device::enqueue(Lock&, Stream* stream, const char* kind, Run run, bool on_host) {
  stream->clock.join(this_host().clock);
  const uint64_t number = stream->clock.tick(line_of_stream(stream->number));
  if (number == 1) ++streams_used_;
  const bool is_work = kind != event_name && kind != wait_name && !on_host;
  if (is_work && stream->has_host_functions) ++counts.behind_host_functions;
  stream->has_host_functions |= on_host;
  ++stream->pending;
  queues_[stream->number % queues_.size()].push_back(
      {stream, ++operations_made_, {{kind, line_of_stream(stream->number), number}, stream->clock}, std::move(run), nullptr, nullptr, on_host});
}

void Device::record(Lock& lock, Stream* stream, Event& event) {
  enqueue(lock, stream, event_name, [](const Moment&) {});
  Operation& operation = queues_[stream->number % queues_.size()].back();
  event.last = std::make_shared<Happening>(Happening{.done = false, .name = operation.moment.name, .clock = stream->clock, .when = {}});
  operation.happening = event.last;
}

// Most waits are never told of, and texts take longer than they do.
template <typename Text>
bool Device::counts_as_wait(const Clock& waiting, const Clock& waited, const Text& text) {
  if (waiting.has_seen(waited)) return false;
  if (++counts.waits != options.ignored_wait) return true;
  counts.ignored_wait = text();
  return false;
}

void Device::hold(Lock& lock, Stream* stream, const Event& event) {
  if (!event.last) return;
  const auto text = [&] { return "stream " + std::to_string(stream->number) + " for " + event.last->name.text(); };
  if (!counts_as_wait(stream->clock, event.last->clock, text)) return;
  stream->clock.join(event.last->clock);
  enqueue(lock, stream, wait_name, [](const Moment&) {});
  queues_[stream->number % queues_.size()].back().waits_for = event.last;
}

void Device::note_host_read(Lock&, Stream* stream, std::byte* begin, size_t bytes, std::function<size_t()> checksum) {
  const Moment& now = queues_[stream->number % queues_.size()].back().moment;
  // Another thread may not know what this one does, so what is known is forgotten only if this copy takes its place.
  std::erase_if(host_reads_, [&](const HostRead& read) {
    return begin <= read.begin && read.begin + read.bytes <= begin + bytes && this_host().clock.has_seen(read.name.line, read.name.number);
  });
  for (const HostRead& read : host_reads_) {
    const bool overlaps = read.begin < begin + bytes && begin < read.begin + read.bytes;
    if (!overlaps || this_host().clock.has_seen(read.name.line, read.name.number) || !pinned.holds(read.begin, read.bytes)) continue;
    if (read.checksum() != read.sum) pinned.hazards.push_back("the host has changed what " + read.name.text() + " copies, and has not waited for it");
  }
  const size_t sum = checksum();
  host_reads_.push_back({begin, bytes, std::move(checksum), sum, now.name});
}

void Device::access_by_host(Lock&, const void* begin, size_t bytes, bool writes) {
  if (!pinned.holds(begin, bytes)) return;
  Host& host = this_host();
  const size_t line = line_of_thread(host.thread);
  const uint64_t number = host.clock.tick(line);
  pinned.access(begin, bytes, writes, {{host_access_name, line, number}, host.clock});
}

void Device::hold_all(Lock&, bool held) {
  held_ = held;
  work_.notify_one();
}

cudaError_t Device::wait_until(Lock& lock, const Clock& clock, const std::function<bool()>& done) {
  ++hosts_waiting_;
  work_.notify_one();
  progress_.wait(lock, [&] { return lost || done(); });
  --hosts_waiting_;
  if (lost) return cudaErrorIllegalAddress;
  this_host().clock.join(clock);
  return cudaSuccess;
}

cudaError_t Device::wait(Lock& lock, Stream* stream) {
  const auto text = [stream] { return "the host for stream " + std::to_string(stream->number); };
  return counts_as_wait(this_host().clock, stream->clock, text) ? wait_for(lock, stream) : cudaSuccess;
}

cudaError_t Device::wait_for(Lock& lock, Stream* stream) {
  const Clock clock = stream->clock;
  return wait_until(lock, clock, [stream] { return stream->pending == 0; });
}

cudaError_t Device::wait(Lock& lock, const Event& event) {
  const auto last = event.last;
  if (!last || !counts_as_wait(this_host().clock, last->clock, [&] { return "the host for " + last->name.text(); })) return cudaSuccess;
  return wait_until(lock, last->clock, [last] { return last->done; });
}

cudaError_t Device::wait_for_all(Lock& lock) {
  ++hosts_waiting_;
  work_.notify_one();
  progress_.wait(lock, [&] { return lost || std::ranges::all_of(streams_, [](const auto& stream) { return stream->pending == 0; }); });
  --hosts_waiting_;
  for (const auto& stream : streams_) this_host().clock.join(stream->clock);
  return lost ? cudaErrorIllegalAddress : cudaSuccess;
}

std::deque<Operation>* Device::choose(Lock&) {
  auto& [ready, preferred] = choices_;
  ready.clear();
  preferred.clear();
  if (held_) return nullptr;
  for (auto& queue : queues_) {
    if (queue.empty() || !may_run(queue.front())) continue;
    ready.push_back(&queue);
    if (queue.front().stream->number != starved_stream) preferred.push_back(&queue);
  }
  if (ready.empty()) return nullptr;
  if (options.order == Order::queued) {
    return *std::ranges::min_element(ready, {}, [](const auto* queue) { return queue->front().age; });
  }
  if (options.order == Order::late || (options.order == Order::starved && preferred.empty())) begins_at_ = last_call_ + quiet;
  if (hosts_waiting_ == 0 && Time::now() < begins_at_) return nullptr;
  const auto& choice = options.order == Order::starved && !preferred.empty() ? preferred : ready;
  return choice[random_() % choice.size()];
}

void Device::run_next(Lock& lock, std::deque<Operation>& queue) {
  Operation operation = std::move(queue.front());
  queue.pop_front();
  // All else runs under the lock: memory does not go away beneath it.
  if (operation.on_host) {
    begin_host_function(operation.moment.clock);
    running_ = operation.stream;
    lock.unlock();
  }
  operation.run(operation.moment);
  if (operation.on_host) {
    lock.lock();
    running_ = nullptr;
  }
  if (operation.happening) {
    operation.happening->done = true;
    operation.happening->when = Time::now();
  }
  --operation.stream->pending;
  // To wake the host for each operation would be most of the work: for these alone somebody can wait.
  if (lost || operation.happening || operation.stream->pending == 0) progress_.notify_all();
}

void Device::run() {
  Lock lock(mutex);
  while (!ending_) {
    if (auto* const queue = choose(lock)) {
      run_next(lock, *queue);
    } else if (!choices_.ready.empty()) {
      work_.wait_until(lock, begins_at_);
    } else {
      sleeps_ = true;
      work_.wait(lock);
      // Not at once: there is something to choose from when it begins.
      if (options.order == Order::random) begins_at_ = Time::now() + quiet * (random_() % 1024) / 1024;
    }
  }
}

}  // namespace fake_cuda
