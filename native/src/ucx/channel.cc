#include "ucx/progress.h"

namespace switchyard::ucx {

uint64_t Fabric::Progress::open(const Key& key, ChannelLimits limits, ChannelEvents events) {
  const uint64_t id = next_channel_++;
  auto channel = std::make_shared<std::unique_ptr<Channel>>(
      new Channel{.owner = this, .id = id, .key = key, .limits = limits, .events = std::move(events)});
  enqueue([this, id, channel] { channels_[id] = std::move(*channel); });
  return id;
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
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {on_endpoint_error, this};
  const ucs_status_t status = ucp_ep_create(worker_, &params, &channel.endpoint);
  if (status != UCS_OK) {
    channel.endpoint = nullptr;
    return done(gone(status));
  }
  Endpoint& endpoint = endpoints_[channel.endpoint];
  endpoint.made_here = true;
  ++endpoint.channels;
  channel.peer_channel = peer_channel;
  channel.challenge = random_mark();
  send_control(channel, Kind::challenge, 0, channel.challenge.data(), sizeof(Mark));
  // The peer may have asked before this side could answer.
  if (channel.mark) send_beacon(channel);
  offer_stream(channel);
  done(std::nullopt);
}

void Fabric::Progress::on_endpoint_error(void* self, ucp_ep_h endpoint, ucs_status_t status) {
  for (const auto& [id, channel] : static_cast<Progress*>(self)->channels_) {
    if (channel->endpoint == endpoint || channel->answering == endpoint) channel->owner->fail(*channel, gone(status));
  }
}

void Fabric::Progress::fail(Channel& channel, Error error) {
  if (channel.failure) return;
  channel.failure = error;
  end_offers(channel, error);
  if (channel.stream) end_sends(*channel.stream, error);
  if (!channel.closing) return channel.events.failed(std::move(error));
  close_if_quiet(channel);
}

void Fabric::Progress::close(uint64_t id, CloseDone done) {
  enqueue([this, id, done = std::move(done)] { close_now(id, done); });
}

void Fabric::Progress::close_now(uint64_t id, CloseDone done) {
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
  close_if_quiet(channel);
}

/** Ends the closing of a channel as soon as nothing is under way on it, or its failure has made that void. */
void Fabric::Progress::close_if_quiet(Channel& channel) {
  if (!channel.closing) return;
  if (!channel.failure) {
    const Stream* stream = channel.stream;
    if (!channel.offers.empty() || channel.under_way > 0 || (stream && stream->ready && !stream->idle())) return;
    if (stream && !channel.peer_closing && !ending_) {
      // All is sent. The stream stays until the peer is closing too: what it sends must not end in a reset.
      for (const CloseDone& closed : std::exchange(channel.closed, {})) closed();
      return;
    }
  }
  // The endpoint may not be closed while UCX calls one of its handlers.
  deferred_.push_back([this, id = channel.id] { finish_close(id); });
}

void Fabric::Progress::finish_close(uint64_t id) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;
  const std::shared_ptr<Channel> channel = std::move(found->second);
  channels_.erase(found);
  const auto done = [channel] {
    for (const CloseDone& closed : channel->closed) closed();
  };
  if (channel->stream) streams_.erase(channel->stream->socket());
  const bool failed = channel->failure.has_value();
  leave_endpoint(channel->answering, failed && channel->under_way > 0, [] {});
  leave_endpoint(channel->endpoint, failed, done);
}

void Fabric::Progress::answers_by(Channel& channel, ucp_ep_h endpoint) {
  if (channel.answering == endpoint) return;
  ++endpoints_[endpoint].channels;
  // Nothing may be closed here, within a handler of UCX.
  deferred_.push_back([this, left = std::exchange(channel.answering, endpoint)] { leave_endpoint(left, false, [] {}); });
}

/** `handle` may be null. `failed`: to flush the endpoint is of no use. */
void Fabric::Progress::leave_endpoint(ucp_ep_h handle, bool failed, Command done) {
  const auto found = endpoints_.find(handle);
  if (found == endpoints_.end()) return done();
  found->second.failed |= failed;
  if (--found->second.channels > 0) return done();
  const Endpoint endpoint = found->second;
  endpoints_.erase(found);
  if (!endpoint.made_here) return done();
  close_endpoint(handle, endpoint.failed, std::move(done));
}

void Fabric::Progress::close_endpoint(ucp_ep_h endpoint, bool force, Command done) {
  struct Closing {
    Progress* owner;
    Command done;
  };
  auto* closing = new Closing{this, std::move(done)};
  ++endpoints_closing_;
  const auto closed = [](void* handle, ucs_status_t, void* user_data) {
    const std::unique_ptr<Closing> closing(static_cast<Closing*>(user_data));
    --closing->owner->endpoints_closing_;
    closing->done();
    if (handle) ucp_request_free(handle);
  };
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  param.cb.send = closed;
  param.user_data = closing;
  const ucs_status_ptr_t pending = ucp_ep_close_nbx(endpoint, &param);
  if (!UCS_PTR_IS_PTR(pending)) closed(nullptr, UCS_PTR_RAW_STATUS(pending), closing);
}

std::string Fabric::Progress::transports(uint64_t id) {
  auto answer = std::make_shared<std::promise<std::string>>();
  auto future = answer->get_future();
  enqueue([this, id, answer] {
    const auto found = channels_.find(id);
    if (found == channels_.end() || !found->second->endpoint) return answer->set_value("");
    const Channel& channel = *found->second;
    std::string text = channel.may_offer ? "mapped" : channel.stream && channel.stream->ready ? "stream" : "";
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
          bytes_streamed_, messages_refused_};
}

}  // namespace switchyard::ucx
