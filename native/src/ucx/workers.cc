// The UCX workers to which peers send, one for each kind of peers, and whether what is sent to them comes through.
#include <algorithm>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

/** A peer that was told of a worker, and has stood still since, crashes if the worker's memory is gone when it connects. */
constexpr auto late_peers_time = std::chrono::seconds(30);

/** After so long without any progress the thread no longer looks all the time: it naps, and longer once nothing comes. */
constexpr auto vain_time = std::chrono::milliseconds(2);
constexpr auto idle_time = std::chrono::milliseconds(100);
constexpr int short_nap_ms = 1, long_nap_ms = 5;
/** After so many naps new peers are given another. */
constexpr unsigned naps_max = 200;

void set_handler(ucp_worker_h worker, unsigned id, ucp_am_recv_callback_t callback, void* argument) {
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG |
                       UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  handler.id = id;
  handler.cb = callback;
  handler.arg = argument;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  check(ucp_worker_set_am_recv_handler(worker, &handler), "ucp_worker_set_am_recv_handler");
}

/** Makes what there is to be of a transport: null where there can be none. What could not be made for want of something is made next time. */
template <typename Made, typename Make>
void make_once(std::map<const char*, std::unique_ptr<Made>>& all, const char* transport, const Make& make) {
  if (all.contains(transport)) return;
  try {
    all.emplace(transport, make());
  } catch (const Error& error) {
    if (error.code != Code::resource_exhausted) all.emplace(transport, nullptr);
  }
}

bool is_under_way(const std::pair<const char* const, std::unique_ptr<Probe>>& probe) { return probe.second && probe.second->under_way(); }

}  // namespace

std::vector<uint8_t> Fabric::Progress::address(Peers peers) { return worker_for(peers)->address; }

/** The worker for such peers, made if there is none. Of any thread. */
std::shared_ptr<Fabric::Progress::Worker> Fabric::Progress::worker_for(Peers peers) {
  const std::lock_guard lock(workers_mutex_);
  auto& current = current_[static_cast<size_t>(peers)];
  if (current) return current;
  const auto made = create_worker();
  try {
    enqueue([this, made] { take_on(made); });
  } catch (...) {
    made->destroy();
    throw;
  }
  return current = made;
}

std::shared_ptr<Fabric::Progress::Worker> Fabric::Progress::create_worker() {
  const Descriptors before;
  auto worker = std::make_shared<Worker>(this);
  worker->handle = create_ucx_worker(context_);
  try {
    set_handler(worker->handle, message_id, on_message, worker.get());
    set_handler(worker->handle, stray_id, on_stray, worker.get());
    ucp_address_t* address = nullptr;
    size_t length = 0;
    check(ucp_worker_get_address(worker->handle, &address, &length), "ucp_worker_get_address");
    const auto* bytes = reinterpret_cast<const uint8_t*>(address);
    worker->address.assign(bytes, bytes + length);
    ucp_worker_release_address(worker->handle, address);
    check(ucp_worker_get_efd(worker->handle, &worker->events), "ucp_worker_get_efd");
  } catch (...) {
    worker->destroy();
    throw;
  }
  before.keep_from_children();
  return worker;
}

/** From now on it is driven like the others. */
void Fabric::Progress::take_on(const std::shared_ptr<Worker>& worker) {
  workers_.push_back(worker);
  wakes_.push_back(worker->events);
}

/** As ucp_worker_progress, of all. */
unsigned Fabric::Progress::progress() {
  unsigned count = 0;
  for (const auto& worker : workers_) {
    const unsigned own = ucp_worker_progress(worker->handle);
    if (own != 0) worker->unarmed_since.reset();
    count += own;
  }
  return count;
}

/** Whether each will tell of what comes: false while something has come, or waits for room in the queue of a peer. */
bool Fabric::Progress::arm() {
  bool all = true;
  for (const auto& worker : workers_) {
    if (worker->retired) continue;
    if (ucp_worker_arm(worker->handle) == UCS_OK) {
      worker->unarmed_since.reset();
      worker->lost_peer = false;
      worker->naps = 0;
    } else {
      if (!worker->unarmed_since) worker->unarmed_since = std::chrono::steady_clock::now();
      all = false;
    }
  }
  return all;
}

/**
 * For how many milliseconds the thread may sleep although a UCX worker would not tell of what comes; 0: it has something to do. The queue in shared memory
 * of a peer that stands still, or died, may be full. UCX (1.13) cannot be armed while something waits for room there, and closing the endpoint waits for it
 * as well: all that time the worker looks in vain.
 */
int Fabric::Progress::nap_after(std::chrono::steady_clock::time_point now) {
  auto vain = std::chrono::steady_clock::duration::max();
  for (const auto& worker : workers_) {
    if (!worker->retired && worker->unarmed_since) vain = std::min(vain, now - *worker->unarmed_since);
  }
  if (vain < vain_time) return 0;
  for (const auto& worker : workers_) {
    if (!worker->retired && worker->unarmed_since && ++worker->naps >= naps_max && worker->lost_peer) replace(*worker);
  }
  return vain < idle_time ? short_nap_ms : long_nap_ms;
}

bool Fabric::Progress::nothing_under_way() const {
  return std::ranges::all_of(workers_, [](const auto& worker) { return worker->under_way == 0; });
}

/**
 * The peer at `endpoint` died, or says nothing any more: it may have done so in the middle of a write. Peers share the queue in
 * shared memory in which UCX takes messages to a worker, in order; a place that was taken and is never filled blocks it, for all of them and
 * for ever, and no call of UCX tells. A message of one's own does.
 */
void Fabric::Progress::suspect(ucp_ep_h endpoint) {
  const auto found = std::ranges::find(endpoints_, endpoint, &Endpoint::handle);
  if (found != endpoints_.end()) found->worker->suspected = true;
}

void Fabric::Progress::make_probes(Worker& worker) {
  for (const char* transport : queue_transports_) {
    make_once(probers_, transport, [&] { return std::make_unique<Prober>(transport); });
    const auto prober = probers_.find(transport);
    if (prober == probers_.end() || !prober->second) continue;
    make_once(worker.probes, transport, [&] { return std::make_unique<Probe>(*prober->second, worker.address); });
  }
}

void Fabric::Progress::send_probes(Worker& worker, std::chrono::steady_clock::time_point now) {
  worker.suspected = false;
  worker.next_probe = now + probe_period;
  make_probes(worker);
  for (const auto& [transport, probe] : worker.probes) {
    if (probe) probe->send();
  }
}

/** Looks after those that may be blocked, and those that were replaced. True: again soon. */
bool Fabric::Progress::watch_workers(std::chrono::steady_clock::time_point now) {
  bool probing = false;
  for (const auto& worker : workers_) {
    if (worker->retired) continue;
    const auto under_way = [&] { return std::ranges::any_of(worker->probes, is_under_way); };
    if (!under_way() && (worker->suspected || (worker->next_probe && now >= *worker->next_probe))) send_probes(*worker, now);
    const auto its = [&](const auto& channel) { return channel.second->worker == worker; };
    const bool blocked = !std::ranges::all_of(worker->probes, [](const auto& probe) { return !probe.second || probe.second->look(); });
    if (blocked || (worker->replaced && std::ranges::none_of(channels_, its))) retire(*worker);
    probing |= under_way();
  }
  std::erase_if(workers_, [&](const auto& worker) {
    if (!worker->retired || worker->under_way > 0 || now < worker->destroyed_at) return false;
    worker->destroy();
    return true;
  });
  return probing;
}

/** What a prober could not send to a blocked queue may hold up what it sends to others. The next ones are made when they are needed. */
void Fabric::Progress::drop_probers() {
  for (const auto& worker : workers_) {
    worker->suspected |= std::ranges::any_of(worker->probes, is_under_way);
    worker->probes.clear();
  }
  probers_.clear();
}

/** What it has goes on. */
void Fabric::Progress::replace(Worker& worker) {
  if (std::exchange(worker.replaced, true)) return;
  ++workers_replaced_;
  const std::lock_guard lock(workers_mutex_);
  const auto current = std::ranges::find(current_, &worker, &std::shared_ptr<Worker>::get);
  if (current != current_.end()) current->reset();
}

/** Ends all that it has, so that peers and channels begin anew with another. */
void Fabric::Progress::retire(Worker& worker) {
  replace(worker);
  worker.retired = true;
  worker.destroyed_at = std::chrono::steady_clock::now() + late_peers_time;
  drop_probers();
  std::erase(wakes_, worker.events);
  std::vector<ucp_ep_h> over;
  for (const Endpoint& endpoint : endpoints_) {
    if (endpoint.worker != &worker) continue;
    say_goodbye(endpoint);
    over.push_back(endpoint.handle);
  }
  for (const ucp_ep_h endpoint : over) endpoint_over(endpoint, blocked());
  for (const auto& [id, channel] : channels_) {
    if (channel->worker.get() == &worker) fail(*channel, blocked());
  }
}

}  // namespace switchyard::ucx
