#include <algorithm>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

/** To map a peer's memory anew costs each page of it; to keep it, the memory and a descriptor, although the peer may stand still. */
constexpr auto unused_file_time = std::chrono::seconds(5);

}  // namespace

uint64_t Fabric::Progress::open(const Key& key, ChannelLimits limits, ChannelEvents events, Peers peers) {
  if (limits.secret && !can_encrypt()) throw Error(Code::config_invalid, "the addon was built without OpenSSL");
  const uint64_t id = next_channel_++;
  std::unique_ptr<Channel> channel(
      new Channel{.id = id, .key = key, .limits = limits, .events = std::move(events), .worker = worker_for(peers)});
  {
    const std::lock_guard lock(mutex_);
    opening_[id] = std::move(channel);
  }
  enqueue([this, id] { take_in(id); });
  return id;
}

/** Takes in a channel that was opened. The peer's first message may come before the thread knows of it, when the loop drives. */
Fabric::Progress::Channel* Fabric::Progress::take_in(uint64_t id) {
  std::unique_ptr<Channel> opened;
  {
    const std::lock_guard lock(mutex_);
    const auto found = opening_.extract(id);
    if (found.empty()) return nullptr;
    opened = std::move(found.mapped());
  }
  Channel& channel = *(channels_[id] = std::move(opened));
  if (channel.worker->retired) fail(channel, blocked());
  return &channel;
}

void Fabric::Progress::connect(uint64_t id, std::vector<uint8_t> peer_address, uint64_t peer_channel,
                               ConnectDone done) {
  enqueue([this, id, peer_address = std::move(peer_address), peer_channel, done = std::move(done)] {
    connect_now(id, peer_address, peer_channel, done);
  });
}

void Fabric::Progress::connect_now(uint64_t id, const std::vector<uint8_t>& peer_address, uint64_t peer_channel,
                                   ConnectDone done) {
  const auto found = channels_.find(id);
  if (found == channels_.end() || found->second->closing) return done(closed_channel(id));
  Channel& channel = *found->second;
  if (channel.failure) return done(channel.failure);
  if (!queue_transports_.empty() && !channel.worker->next_probe) channel.worker->next_probe = std::chrono::steady_clock::now() + probe_period;
  const ucs_status_t status = find_endpoint(*channel.worker, peer_address, channel.endpoint);
  if (status == UCS_ERR_UNREACHABLE) return done(Error(Code::config_invalid, "the two ends have no transport of UCX in common"));
  if (status != UCS_OK) return done(gone(status));
  if (const auto reason = why_unguarded(channel)) return done(reason);
  channel.peer_channel = peer_channel;
  channel.challenge = random_mark();
  send_control(channel, Kind::challenge, 0, channel.challenge.data(), sizeof(Mark));
  // The peer may have asked before this side could answer.
  if (channel.mark) send_beacon(channel);
  offer_stream(channel);
  done(std::nullopt);
}

void Fabric::Progress::fail(Channel& channel, Error error) {
  if (channel.failure) return;
  channel.failure = error;
  end_offers(channel, error);
  end_waiting(channel, error);
  if (channel.stream) end_sends(*channel.stream, error);
  if (!channel.closing) return channel.events.failed(std::move(error));
  close_if_quiet(channel);
}

void Fabric::Progress::abandon(uint64_t id) {
  enqueue([this, id] {
    const auto found = channels_.find(id);
    if (found == channels_.end()) return;
    for (Endpoint& endpoint : endpoints_) endpoint.abandoned |= endpoint.handle == found->second->endpoint;
    // The peer may have written although nothing was sent to it yet.
    found->second->worker->suspected = true;
  });
}

void Fabric::Progress::close(uint64_t id, CloseDone done, std::chrono::milliseconds flush) {
  enqueue([this, id, done = std::move(done), flush] { close_now(id, done, flush); });
}

void Fabric::Progress::close_now(uint64_t id, CloseDone done, std::chrono::milliseconds flush) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) {
    if (done) done();
    return;
  }
  Channel& channel = *found->second;
  if (done) channel.closed.push_back(std::move(done));
  if (channel.closing) return;
  channel.closing = true;
  if (channel.endpoint && !channel.failure) send_control(channel, Kind::closing);
  if (channel.stream) watch(*channel.stream);
  if (flush.count() == 0) return give_up(channel);
  flushing_.emplace(std::chrono::steady_clock::now() + flush, id);
  close_if_quiet(channel);
}

/** Takes back what a closing channel has sent and the peer has not taken. */
void Fabric::Progress::give_up(Channel& channel) {
  channel.given_up = true;
  if (!channel.failure) channel.failure = closed_channel(channel.id);
  end_offers(channel, *channel.failure);
  end_waiting(channel, *channel.failure);
  if (channel.stream) end_sends(*channel.stream, *channel.failure);
  // UCX does not take messages back, but most have left by then.
  if (channel.holding > 0) flushing_.emplace(std::chrono::steady_clock::now() + flush_wait, channel.id);
  close_if_quiet(channel);
}

void Fabric::Progress::give_up_late() {
  const auto now = std::chrono::steady_clock::now();
  while (!flushing_.empty() && flushing_.begin()->first <= now) {
    const auto late = flushing_.extract(flushing_.begin());
    const auto found = channels_.find(late.mapped());
    if (found == channels_.end()) continue;
    Channel& channel = *found->second;
    if (!channel.given_up) give_up(channel);
    else if (channel.endpoint) {
      suspect(channel.endpoint);
      endpoint_over(channel.endpoint, gone(UCS_ERR_TIMED_OUT));
    }
  }
}

void Fabric::Progress::unmap_unused() {
  const auto now = std::chrono::steady_clock::now();
  while (!unused_files_.empty() && unused_files_.front().first <= now) unused_files_.pop_front();
}

/** When something is to be given up or looked at next. */
std::optional<std::chrono::steady_clock::time_point> Fabric::Progress::next_look() const {
  std::optional<std::chrono::steady_clock::time_point> next;
  if (!flushing_.empty()) next = flushing_.begin()->first;
  const auto sooner = [&](std::chrono::steady_clock::time_point time) { next = std::min(next.value_or(time), time); };
  if (!unused_files_.empty()) sooner(unused_files_.front().first);
  for (const auto& worker : workers_) {
    // Its end waits for what UCX has under way, however late.
    if (worker->retired && worker->under_way == 0) sooner(worker->destroyed_at);
    if (!worker->retired && worker->next_probe && !channels_.empty()) sooner(*worker->next_probe);
  }
  return next;
}

/** Ends the closing of a channel as soon as nothing is under way on it, or nothing that holds memory once it has failed. */
void Fabric::Progress::close_if_quiet(Channel& channel) {
  if (!channel.closing) return;
  if (channel.failure) {
    if (channel.holding > 0) return;
  } else {
    const Stream* stream = channel.stream;
    if (!channel.offers.empty() || !channel.waiting.empty() || channel.under_way > 0 || (stream && stream->ready && !stream->idle())) return;
    if (stream && !channel.peer_closing && !ending_) {
      // All is sent. The stream stays until the peer is closing too: what it sends must not end in a reset.
      for (const CloseDone& closed : std::exchange(channel.closed, {})) closed();
      return;
    }
  }
  // Whoever calls has the channel still in its hands.
  deferred_.push_back([this, id = channel.id] { finish_close(id); });
}

void Fabric::Progress::finish_close(uint64_t id) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;
  const std::unique_ptr<Channel> channel = std::move(found->second);
  channels_.erase(found);
  if (channel->peer_memory && channel->endpoint) {
    unused_files_.emplace_back(std::chrono::steady_clock::now() + unused_file_time, channel->peer_memory->file());
  }
  if (channel->stream) streams_.erase(channel->stream->socket());
  for (const CloseDone& closed : channel->closed) closed();
}

std::string Fabric::Progress::transports(uint64_t id) {
  auto answer = std::make_shared<std::promise<std::string>>();
  auto future = answer->get_future();
  enqueue([this, id, answer] {
    const auto found = channels_.find(id);
    if (found == channels_.end() || !found->second->endpoint) return answer->set_value("");
    Channel& channel = *found->second;
    const Stream* const stream = channel.stream && channel.stream->ready ? channel.stream : nullptr;
    std::string text;
    if (channel.may_offer && !guarded(channel)) text = "mapped";
    else if (stream) text = stream->tls() ? "tls" : "stream";
    for (const Lane& lane : lanes_of(channel.endpoint)) {
      if ((" " + text + " ").find(" " + lane.transport + " ") != std::string::npos) continue;
      text += (text.empty() ? "" : " ") + lane.transport;
    }
    answer->set_value(text);
  });
  return future.get();
}

FabricStats Fabric::Progress::stats() const {
  return {messages_sent_, messages_received_, bytes_sent_, bytes_received_, bytes_copied_, bytes_taken_,
          bytes_streamed_, messages_refused_, workers_replaced_, looked_ns_};
}

}  // namespace switchyard::ucx
