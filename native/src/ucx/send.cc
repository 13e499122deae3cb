#include "ucx/progress.h"
#include "ucx/selection.h"

namespace switchyard::ucx {
namespace {

/** From here on one copy and two short messages cost less than two copies. */
constexpr size_t offer_bytes_min = 16 * 1024;
/** From here on a stream's copy less counts for more than its system calls. */
constexpr size_t stream_bytes_min = 32 * 1024;
/** The kernel copies less than 2 GiB at once. */
constexpr size_t offer_bytes_max = size_t{1} << 30;

}  // namespace

std::optional<Error> Fabric::Progress::why_unsendable(const Channel& channel) {
  if (channel.failure) return channel.failure;
  if (!channel.endpoint) return Error(Code::internal, "the UCX channel is not connected");
  if (channel.peer_closing) return Error(Code::link_lost, "the UCX peer closed the channel");
  return std::nullopt;
}

void Fabric::Progress::send(uint64_t id, Message message, SendDone done) {
  if (send_at_once(id, message, done)) return;
  enqueue([this, id, message = std::move(message), done = std::move(done)]() mutable {
    if (!is_light(id, message)) keep_from_loop();
    send_now(id, std::move(message), std::move(done));
  });
}

/** Sends a short message if the thread leaves UCX alone and nothing that came before waits for it. False: the thread must. */
bool Fabric::Progress::send_at_once(uint64_t id, Message& message, SendDone& done) {
  const std::unique_lock driving(driving_, std::try_to_lock);
  if (!driving || !is_light(id, message)) return false;
  {
    const std::lock_guard lock(mutex_);
    if (closing_ || !commands_.empty()) return false;
  }
  const size_t under_way = sending_.size();
  send_now(id, std::move(message), std::move(done));
  // What could not leave at once leaves when UCX is driven.
  if (sending_.size() > under_way || !deferred_.empty()) wake();
  return true;
}

/** Whether a message takes no longer than to wake the thread: nothing is gathered, and nothing long is copied or written to a stream. */
bool Fabric::Progress::is_light(uint64_t id, const Message& message) const {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return false;
  return found->second->may_offer || message.row_bytes + message.meta_bytes < offer_bytes_min;
}

void Fabric::Progress::send_now(uint64_t id, Message message, SendDone done) {
  const auto found = channels_.find(id);
  Channel* const open = found == channels_.end() || found->second->closing ? nullptr : found->second.get();
  if (const auto refusal = open ? why_unsendable(*open) : std::optional(closed_channel(id))) {
    // Whoever is told may count on the slab.
    message = {};
    return done(refusal);
  }
  Channel& channel = *open;
  if (guarded(channel)) return send_guarded(channel, std::move(message), std::move(done));
  const size_t length = message.row_bytes + message.meta_bytes;
  if (channel.may_offer && length >= offer_bytes_min && length <= offer_bytes_max) {
    return offer(channel, std::move(message), std::move(done));
  }
  if (!gather(message, done)) return;
  const WireHeader header = next_header(channel, message);
  if (channel.stream && channel.stream->ready && length >= stream_bytes_min) {
    return push(channel, {header, std::move(message), std::move(done)});
  }
  auto request = std::make_unique<SendRequest>();
  request->header = header;
  request->message = std::move(message);
  request->done = std::move(done);
  const void* data = request->message.slab->data();
  transmit(channel, std::move(request), data, length);
}

/** Puts the rows of a message side by side. False if there is no memory, which `done` was told. */
bool Fabric::Progress::gather(Message& message, SendDone& done) {
  if (!message.source) return true;
  try {
    message = gathered(arena_, message);
    return true;
  } catch (const Error& error) {
    message = {};
    done(error);
    return false;
  }
}

WireHeader Fabric::Progress::next_header(Channel& channel, const Message& message) {
  return {.row_bytes = message.row_bytes, .meta_bytes = message.meta_bytes, .sequence = channel.next_sent++};
}

void Fabric::Progress::offer(Channel& channel, Message message, SendDone done) {
  const uint64_t sequence = channel.next_sent++;
  const uint64_t source = message.source ? message.source->file_offset() : 0;
  const Offer offer{message.slab->file_offset(), source, message.source_row_bytes};
  auto request = std::make_unique<SendRequest>();
  request->header.kind = Kind::offer;
  request->header.row_bytes = message.row_bytes;
  request->header.meta_bytes = message.meta_bytes;
  request->header.sequence = sequence;
  std::memcpy(request->control.data(), &offer, sizeof(offer));
  channel.offers.emplace(sequence, Outstanding{std::move(message), std::move(done)});
  const void* data = request->control.data();
  transmit(channel, std::move(request), data, sizeof(offer));
}

void Fabric::Progress::send_control(Channel& channel, Kind kind, uint64_t sequence, const void* data, size_t length) {
  auto request = std::make_unique<SendRequest>();
  request->header.kind = kind;
  request->header.sequence = sequence;
  if (length > 0) std::memcpy(request->control.data(), data, length);
  const void* copied = request->control.data();
  transmit(channel, std::move(request), copied, length);
}

void Fabric::Progress::transmit(Channel& channel, std::unique_ptr<SendRequest> request, const void* data,
                                size_t length) {
  request->worker = channel.worker.get();
  request->channel = channel.id;
  request->header.channel = channel.peer_channel;
  request->header.key = channel.key;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  // Short messages are copied out at once, or can be given up: UCX never gives up those that it leaves for the peer to fetch.
  param.flags = length < offer_bytes_min ? UCP_AM_SEND_FLAG_EAGER : 0;
  param.cb.send = on_sent;
  param.user_data = request.get();
  sending_.insert(request.get());
  ++channel.worker->under_way;
  ++channel.under_way;
  if (request->header.kind == Kind::message) ++channel.holding;
  const ucs_status_ptr_t pending =
      ucp_am_send_nbx(channel.endpoint, message_id, &request->header, sizeof(WireHeader), data, length, &param);
  SendRequest* sent = request.release();  // on_sent owns it now.
  if (!UCS_PTR_IS_PTR(pending)) on_sent(nullptr, UCS_PTR_RAW_STATUS(pending), sent);
}

void Fabric::Progress::on_sent(void* handle, ucs_status_t status, void* user_data) {
  const std::unique_ptr<SendRequest> request(static_cast<SendRequest*>(user_data));
  --request->worker->under_way;
  Progress& self = *request->worker->owner;
  self.sending_.erase(request.get());
  self.ended(request->channel, request->header.kind == Kind::message);
  std::optional<Error> error;
  if (status != UCS_OK) error = gone(status);
  if (request->header.kind == Kind::message) {
    if (!error) {
      ++self.messages_sent_;
      self.bytes_sent_ += request->message.row_bytes + request->message.meta_bytes;
    }
    request->message.slab.reset();
    request->done(error);
  } else if (error) {
    // The peer waits for a word that will not come.
    const auto found = self.channels_.find(request->channel);
    if (found != self.channels_.end()) self.fail(*found->second, *error);
  }
  if (handle) ucp_request_free(handle);
}

/** A message of the channel, which `held` a slab or not, is no longer under way. */
void Fabric::Progress::ended(uint64_t id, bool held) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;
  --found->second->under_way;
  if (held) --found->second->holding;
  close_if_quiet(*found->second);
}

void Fabric::Progress::end_offers(Channel& channel, const Error& error) {
  // The memory will be used again: whoever still reads it must see that.
  if (channel.mark) channel.mark->wipe();
  channel.may_offer = false;
  for (auto& [sequence, outstanding] : std::exchange(channel.offers, {})) {
    outstanding.message = {};
    outstanding.done(error);
  }
}

}  // namespace switchyard::ucx
