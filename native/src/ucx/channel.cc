#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <regex>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

Error gone(ucs_status_t status) {
  return Error(Code::link_lost, std::string("the UCX peer is gone: ") + ucs_status_string(status));
}

Error unknown_channel(uint64_t id) {
  return Error(Code::link_lost, "UCX channel " + std::to_string(id) + " is closed");
}

/** Messages that may wait for one that was sent before them. */
constexpr size_t early_max = 4096;

/** The transports of an endpoint's lanes, each once. UCX 1.13 tells them in its text for people alone. */
std::string lane_transports(ucp_ep_h endpoint) {
  char* text = nullptr;
  size_t length = 0;
  FILE* stream = open_memstream(&text, &length);
  if (!stream) return "";
  ucp_ep_print_info(endpoint, stream);
  std::fclose(stream);
  const std::string info(text, length);
  std::free(text);

  // For example: "#   lane[0]:  3:sysv/memory.0 md[2] -> md[2]/sysv/sysdev[255] am am_bw#0 keepalive".
  const std::regex lane(R"(lane\[\d+\]:\s+\d+:(\w+)/)");
  std::string found;
  for (std::sregex_iterator match(info.begin(), info.end(), lane), end; match != end; ++match) {
    const std::string name = (*match)[1];
    if ((" " + found + " ").find(" " + name + " ") == std::string::npos) found += (found.empty() ? "" : " ") + name;
  }
  return found;
}

}  // namespace

uint64_t Fabric::Progress::open(const Key& key, ChannelLimits limits, ChannelEvents events) {
  const uint64_t id = next_channel_++;
  auto channel = std::make_shared<std::unique_ptr<Channel>>(new Channel{this, id, key, limits, std::move(events), nullptr, 0, 0, 0, {}, std::nullopt});
  enqueue([this, id, channel] { channels_[id] = std::move(*channel); });
  return id;
}

void Fabric::Progress::connect(uint64_t id, std::vector<uint8_t> peer_address, uint64_t peer_channel,
                               ConnectDone done) {
  enqueue([this, id, peer_address = std::move(peer_address), peer_channel, done = std::move(done)] {
    const auto found = channels_.find(id);
    if (found == channels_.end()) return done(unknown_channel(id));
    Channel& channel = *found->second;
    ucp_ep_params_t params{};
    params.field_mask =
        UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params.address = reinterpret_cast<const ucp_address_t*>(peer_address.data());
    params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params.err_handler = {on_endpoint_error, &channel};
    const ucs_status_t status = ucp_ep_create(worker_, &params, &channel.endpoint);
    if (status != UCS_OK) {
      channel.endpoint = nullptr;
      return done(gone(status));
    }
    channel.peer_channel = peer_channel;
    done(std::nullopt);
  });
}

void Fabric::Progress::send(uint64_t id, Message message, SendDone done) {
  enqueue([this, id, message = std::move(message), done = std::move(done)]() mutable {
    send_now(id, std::move(message), std::move(done));
  });
}

void Fabric::Progress::send_now(uint64_t id, Message message, SendDone done) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return done(unknown_channel(id));
  Channel& channel = *found->second;
  if (channel.failure) return done(channel.failure);
  if (!channel.endpoint) return done(Error(Code::internal, "the UCX channel is not connected"));

  WireHeader header;
  header.meta_bytes = static_cast<uint32_t>(message.meta_bytes);
  header.channel = channel.peer_channel;
  header.row_bytes = message.row_bytes;
  header.sequence = channel.next_sent++;
  header.key = channel.key;
  auto request = std::make_unique<SendRequest>(SendRequest{this, header, std::move(message), std::move(done)});

  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = on_sent;
  param.user_data = request.get();
  const size_t length = request->message.row_bytes + request->message.meta_bytes;
  sending_.insert(request.get());
  const ucs_status_ptr_t pending = ucp_am_send_nbx(channel.endpoint, message_id, &request->header, sizeof(WireHeader),
                                                   request->message.slab->data(), length, &param);
  if (UCS_PTR_IS_PTR(pending)) {
    request.release();  // on_sent owns it now.
  } else {
    on_sent(nullptr, UCS_PTR_RAW_STATUS(pending), request.release());
  }
}

void Fabric::Progress::on_sent(void* handle, ucs_status_t status, void* user_data) {
  const std::unique_ptr<SendRequest> request(static_cast<SendRequest*>(user_data));
  Progress& self = *request->owner;
  self.sending_.erase(request.get());
  if (status == UCS_OK) {
    ++self.messages_sent_;
    self.bytes_sent_ += request->message.row_bytes + request->message.meta_bytes;
  }
  request->message.slab.reset();
  request->done(status == UCS_OK ? std::nullopt : std::optional<Error>(gone(status)));
  if (handle) ucp_request_free(handle);
}

ucs_status_t Fabric::Progress::on_message(void* self, const void* header, size_t header_length, void* data,
                                          size_t length, const ucp_am_recv_param_t* param) {
  auto& progress = *static_cast<Progress*>(self);
  if (header_length != sizeof(WireHeader)) return progress.refuse();
  WireHeader wire;
  std::memcpy(&wire, header, sizeof(wire));
  return progress.receive(wire, data, length, (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
}

ucs_status_t Fabric::Progress::receive(const WireHeader& header, void* data, size_t length, bool rendezvous) {
  if (header.magic != WireHeader::expected_magic) return refuse();
  const auto found = channels_.find(header.channel);
  if (found == channels_.end() || !same_key(found->second->key, header.key)) return refuse();
  Channel& channel = *found->second;
  if (channel.failure) return refuse();
  if (length == 0 || length > channel.limits.message_bytes_max || header.row_bytes > length ||
      header.meta_bytes != length - header.row_bytes) {
    fail(channel, Error(Code::invalid_argument,
                        "a UCX message of " + std::to_string(length) + " bytes announces " +
                            std::to_string(header.row_bytes) + " bytes of rows and " +
                            std::to_string(header.meta_bytes) + " of metadata; allowed: their sum, at most " +
                            std::to_string(channel.limits.message_bytes_max)));
    return refuse();
  }
  Message message;
  try {
    // The slab is as long as its rows; the metadata lies in its tail.
    const size_t row_bytes = header.row_bytes;
    message = {arena_.allocate(std::max<size_t>(row_bytes, 1), header.meta_bytes), row_bytes, header.meta_bytes};
  } catch (const Error& error) {
    fail(channel, error);
    return refuse();
  }
  if (!rendezvous) {
    std::memcpy(message.slab->data(), data, length);
    bytes_copied_ += length;
    deliver(header.channel, header.sequence, std::move(message));
    return UCS_OK;
  }

  auto* request = new ReceiveRequest{this, header.channel, header.sequence, std::move(message)};
  receiving_.insert(request);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  param.cb.recv_am = on_received;
  param.user_data = request;
  const ucs_status_ptr_t pending =
      ucp_am_recv_data_nbx(worker_, data, request->message.slab->data(), length, &param);
  if (!UCS_PTR_IS_PTR(pending)) on_received(nullptr, UCS_PTR_RAW_STATUS(pending), length, request);
  return UCS_INPROGRESS;
}

void Fabric::Progress::on_received(void* handle, ucs_status_t status, size_t, void* user_data) {
  const std::unique_ptr<ReceiveRequest> request(static_cast<ReceiveRequest*>(user_data));
  Progress& self = *request->owner;
  self.receiving_.erase(request.get());
  // A failed transfer needs no word of its own: the endpoint's error handler says that the peer is gone.
  if (status == UCS_OK) self.deliver(request->channel, request->sequence, std::move(request->message));
  if (handle) ucp_request_free(handle);
}

void Fabric::Progress::deliver(uint64_t id, uint64_t sequence, Message message) {
  const auto found = channels_.find(id);
  if (found == channels_.end() || found->second->failure) return;
  Channel& channel = *found->second;
  if (sequence < channel.next_delivered || !channel.early.emplace(sequence, std::move(message)).second) {
    fail(channel, Error(Code::invalid_argument, "UCX message " + std::to_string(sequence) + " came twice"));
    return;
  }
  if (channel.early.size() > early_max) {
    fail(channel, Error(Code::data_loss, "UCX message " + std::to_string(channel.next_delivered) + " is missing"));
    return;
  }
  for (auto next = channel.early.begin(); next != channel.early.end() && next->first == channel.next_delivered;
       next = channel.early.erase(next)) {
    ++channel.next_delivered;
    ++messages_received_;
    bytes_received_ += next->second.row_bytes + next->second.meta_bytes;
    channel.events.received(std::move(next->second));
  }
}

ucs_status_t Fabric::Progress::refuse() {
  ++messages_refused_;
  return UCS_OK;
}

void Fabric::Progress::on_endpoint_error(void* argument, ucp_ep_h, ucs_status_t status) {
  auto& channel = *static_cast<Channel*>(argument);
  channel.owner->fail(channel, gone(status));
}

void Fabric::Progress::fail(Channel& channel, Error error) {
  if (channel.failure) return;
  channel.failure = error;
  channel.events.failed(std::move(error));
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
  // The endpoint's error handler may still be called while it closes: the channel lives until then.
  std::shared_ptr<Channel> channel = std::move(found->second);
  channels_.erase(found);
  const bool force = channel->failure.has_value();
  if (!channel->failure) channel->failure = unknown_channel(id);
  if (!channel->endpoint) {
    if (done) done();
    return;
  }
  close_endpoint(channel->endpoint, force, [channel, done = std::move(done)] {
    if (done) done();
  });
}

void Fabric::Progress::close_endpoint(ucp_ep_h endpoint, bool force, CloseDone done) {
  struct Closing {
    Progress* owner;
    CloseDone done;
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
    answer->set_value(lane_transports(found->second->endpoint));
  });
  return future.get();
}

FabricStats Fabric::Progress::stats() const {
  return {messages_sent_, messages_received_, bytes_sent_, bytes_received_, bytes_copied_, messages_refused_};
}

}  // namespace switchyard::ucx
