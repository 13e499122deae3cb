#include <algorithm>

#include "ucx/progress.h"
#include "ucx/selection.h"

namespace switchyard::ucx {
namespace {

template <typename T>
std::optional<T> read_as(const void* data, size_t length) {
  if (length != sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace

ucs_status_t Fabric::Progress::on_message(void* worker, const void* header, size_t header_length, void* data,
                                          size_t length, const ucp_am_recv_param_t* param) {
  auto& on = *static_cast<Worker*>(worker);
  if (header_length != sizeof(WireHeader)) return on.owner->refuse();
  WireHeader wire;
  std::memcpy(&wire, header, sizeof(wire));
  return on.owner->receive(on, wire, data, length, *param);
}

ucs_status_t Fabric::Progress::on_stray(void* worker, const void*, size_t, void*, size_t, const ucp_am_recv_param_t*) {
  return static_cast<Worker*>(worker)->owner->refuse();
}

ucs_status_t Fabric::Progress::receive(Worker& worker, const WireHeader& header, void* data, size_t length,
                                       const ucp_am_recv_param_t& param) {
  if (header.magic != WireHeader::expected_magic) return refuse();
  const bool rendezvous = (param.recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if (header.kind == Kind::goodbye && !rendezvous) {
    receive_goodbye({static_cast<const uint8_t*>(data), length});
    return UCS_OK;
  }
  if (header.kind == Kind::probe) {
    for (const auto& [transport, probe] : worker.probes) {
      if (probe) probe->hear(header.key);
    }
    return UCS_OK;
  }
  const auto found = channels_.find(header.channel);
  Channel* const known = found == channels_.end() ? take_in(header.channel) : found->second.get();
  // Both ends may close at once: then this one has forgotten the channel before it hears so.
  if (!known && header.kind == Kind::closing) return UCS_OK;
  if (!known || known->worker.get() != &worker || !same_key(known->key, header.key)) return refuse();
  Channel& channel = *known;
  if ((header.kind == Kind::message || header.kind == Kind::offer) && guarded(channel)) return refuse();
  if (header.kind != Kind::message) {
    if (rendezvous) return refuse();
    receive_control(channel, header, data, length);
    return UCS_OK;
  }
  if (channel.failure || channel.closing) return refuse();
  auto message = allocate(channel, header, length);
  if (!message) return refuse();
  if (!rendezvous) {
    std::memcpy(message->slab->data(), data, length);
    bytes_copied_ += length;
    deliver(channel.id, header.sequence, std::move(*message));
    return UCS_OK;
  }

  auto* request = new ReceiveRequest{&worker, channel.id, header.sequence, std::move(*message)};
  receiving_.insert(request);
  ++worker.under_way;
  ++channel.under_way;
  ++channel.holding;
  const auto fetch = [request, data, length] {
    ucp_request_param_t transfer{};
    transfer.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    transfer.cb.recv_am = on_received;
    transfer.user_data = request;
    const ucs_status_ptr_t pending = ucp_am_recv_data_nbx(request->worker->handle, data, request->message.slab->data(), length, &transfer);
    if (!UCS_PTR_IS_PTR(pending)) on_received(nullptr, UCS_PTR_RAW_STATUS(pending), length, request);
  };
  if (is_for_thread(length)) deferred_.push_back(fetch);
  else fetch();
  return UCS_INPROGRESS;
}

/** A slab for what the header announces; fails the channel and returns nothing if it must not be taken. */
std::optional<Message> Fabric::Progress::allocate(Channel& channel, const WireHeader& header, size_t length) {
  const size_t allowed = channel.limits.message_bytes_max;
  if (length == 0 || length > allowed || header.row_bytes > length || header.meta_bytes != length - header.row_bytes) {
    fail(channel, Error(Code::invalid_argument,
                        "a UCX message of " + std::to_string(length) + " bytes announces " +
                            std::to_string(header.row_bytes) + " bytes of rows and " +
                            std::to_string(header.meta_bytes) + " of metadata; allowed: their sum, at most " +
                            std::to_string(allowed)));
    return std::nullopt;
  }
  try {
    // The slab is as long as its rows; the metadata lies in its tail.
    const size_t row_bytes = header.row_bytes;
    return Message{arena_.allocate(std::max<size_t>(row_bytes, 1), header.meta_bytes), row_bytes, header.meta_bytes,
                   std::chrono::steady_clock::now()};
  } catch (const Error& error) {
    fail(channel, error);
    return std::nullopt;
  }
}

void Fabric::Progress::on_received(void* handle, ucs_status_t status, size_t, void* user_data) {
  const std::unique_ptr<ReceiveRequest> request(static_cast<ReceiveRequest*>(user_data));
  --request->worker->under_way;
  Progress& self = *request->worker->owner;
  self.receiving_.erase(request.get());
  self.ended(request->channel, true);
  const auto found = self.channels_.find(request->channel);
  if (status == UCS_OK) self.deliver(request->channel, request->sequence, std::move(request->message));
  else if (found != self.channels_.end()) self.fail(*found->second, gone(status));
  if (handle) ucp_request_free(handle);
}

void Fabric::Progress::deliver(uint64_t id, uint64_t sequence, Message message) {
  const auto found = channels_.find(id);
  if (found == channels_.end() || found->second->failure || found->second->closing) return;
  Channel& channel = *found->second;
  message.arrived = std::chrono::steady_clock::now();
  channel.early_bytes += message.slab->capacity();
  if (sequence < channel.next_delivered || !channel.early.emplace(sequence, std::move(message)).second) {
    fail(channel, Error(Code::invalid_argument, "UCX message " + std::to_string(sequence) + " came twice"));
    return;
  }
  for (auto next = channel.early.begin(); next != channel.early.end() && next->first == channel.next_delivered;
       next = channel.early.erase(next)) {
    ++channel.next_delivered;
    ++messages_received_;
    bytes_received_ += next->second.row_bytes + next->second.meta_bytes;
    channel.early_bytes -= next->second.slab->capacity();
    channel.events.received(std::move(next->second));
  }
  if (channel.early_bytes > channel.limits.early_bytes_max) {
    fail(channel, Error(Code::data_loss, "UCX message " + std::to_string(channel.next_delivered) + " is missing"));
  }
}

void Fabric::Progress::receive_control(Channel& channel, const WireHeader& header, const void* data, size_t length) {
  switch (header.kind) {
    case Kind::challenge:
    case Kind::beacon:
    case Kind::stream_offer:
      return receive_setup(channel, header, {static_cast<const std::byte*>(data), length});
    case Kind::may_offer:
      // Only a mark that is known here can have been read.
      if (!channel.mark) return refuse_malformed(channel, header, length);
      channel.may_offer = true;
      return;
    case Kind::offer:
      if (const auto offer = read_as<Offer>(data, length)) return receive_offer(channel, header, *offer);
      return refuse_malformed(channel, header, length);
    case Kind::taken:
      return receive_taken(channel, header.sequence);
    case Kind::closing:
      channel.peer_closing = true;
      end_offers(channel, Error(Code::link_lost, "the UCX peer closed the channel"));
      end_waiting(channel, Error(Code::link_lost, "the UCX peer closed the channel"));
      if (channel.stream) end_sends(*channel.stream, Error(Code::link_lost, "the UCX peer closed the channel"));
      close_if_quiet(channel);
      return;
    case Kind::message:
    case Kind::goodbye:
    case Kind::probe:
    case Kind::stream_hello:
    case Kind::stream_ready:
      break;
  }
  refuse_malformed(channel, header, length);
}

/** What begins a channel maps memory and opens sockets, which no event loop waits for. */
void Fabric::Progress::receive_setup(Channel& channel, const WireHeader& header, std::span<const std::byte> data) {
  if (loops_turn_) {
    deferred_.push_back([this, header, id = channel.id, data = std::vector(data.begin(), data.end())] {
      const auto found = channels_.find(id);
      if (found != channels_.end()) receive_setup(*found->second, header, data);
    });
    return;
  }
  if (header.kind == Kind::challenge) {
    if (const auto mark = read_as<Mark>(data.data(), data.size())) return receive_challenge(channel, *mark);
  } else if (header.kind == Kind::beacon) {
    if (const auto beacon = read_as<Beacon>(data.data(), data.size())) return receive_beacon(channel, *beacon);
  } else if (const auto place = read_as<Place>(data.data(), data.size()); place && place->valid()) {
    return receive_stream_offer(channel, *place);
  }
  refuse_malformed(channel, header, data.size());
}

void Fabric::Progress::refuse_malformed(Channel& channel, const WireHeader& header, size_t length) {
  refuse();
  fail(channel, broken("a control message of kind " + std::to_string(static_cast<uint32_t>(header.kind)) + " and " + std::to_string(length) + " bytes"));
}

void Fabric::Progress::receive_challenge(Channel& channel, const Mark& mark) {
  if (channel.failure || channel.closing) return;
  channel.peer_challenge = mark;
  hear(channel.endpoint);
  offer_stream(channel);
  if (!peer_memory_allowed_) return;
  try {
    channel.mark.emplace(arena_.file(), mark);
  } catch (const Error&) {
    return;  // Messages go by UCX's way.
  }
  if (channel.endpoint) send_beacon(channel);
}

void Fabric::Progress::send_beacon(Channel& channel) {
  const Beacon beacon = channel.mark->beacon();
  send_control(channel, Kind::beacon, 0, &beacon, sizeof(beacon));
}

void Fabric::Progress::receive_beacon(Channel& channel, const Beacon& beacon) {
  if (!peer_memory_allowed_ || !channel.endpoint || channel.failure || channel.closing) return;
  const auto endpoint = std::ranges::find(endpoints_, channel.endpoint, &Endpoint::handle);
  if (endpoint == endpoints_.end()) return;
  channel.peer_memory = PeerMemory::open(beacon, channel.challenge, endpoint->file.lock());
  if (!channel.peer_memory) return;
  endpoint->file = channel.peer_memory->file();
  send_control(channel, Kind::may_offer);
}

void Fabric::Progress::receive_offer(Channel& channel, const WireHeader& header, const Offer& offer) {
  // The sender learns from `closing` that its offer is not taken.
  if (channel.failure || channel.closing) {
    refuse();
    return;
  }
  if (!channel.peer_memory) {
    refuse();
    return fail(channel, broken("an offer that nobody asked for"));
  }
  if (!is_for_thread(header.row_bytes + header.meta_bytes)) return take_offer(channel, header, offer);
  deferred_.push_back([this, id = channel.id, header, offer] {
    const auto found = channels_.find(id);
    if (found != channels_.end()) receive_offer(*found->second, header, offer);
  });
}

void Fabric::Progress::take_offer(Channel& channel, const WireHeader& header, const Offer& offer) {
  auto message = allocate(channel, header, header.row_bytes + header.meta_bytes);
  if (!message) {
    refuse();
    return;
  }
  const size_t length = message->row_bytes + message->meta_bytes;
  if (!take(*channel.peer_memory, offer, *message)) {
    return fail(channel, Error(Code::link_lost, "the UCX peer is gone: its memory cannot be read"));
  }
  bytes_taken_ += length;
  send_control(channel, Kind::taken, header.sequence);
  deliver(channel.id, header.sequence, std::move(*message));
}

/** Copies an offered message into its slab. False if it is not where the offer says. */
bool Fabric::Progress::take(PeerMemory& memory, const Offer& offer, const Message& message) {
  std::byte* out = message.slab->data();
  const size_t row_bytes = offer.source_row_bytes;
  if (row_bytes == 0) return memory.read(offer.offset, message.row_bytes + message.meta_bytes, out);
  if (message.row_bytes % row_bytes != 0) return false;
  // The peer may write to them at any time: they are checked where it cannot.
  std::array<uint32_t, 4096> indices;
  const uint64_t at = offer.offset + indices_offset(message.meta_bytes);
  for (size_t row = 0, rows = message.row_bytes / row_bytes; row < rows; row += indices.size()) {
    const size_t count = std::min(indices.size(), rows - row);
    if (!memory.read(at + row * sizeof(uint32_t), count * sizeof(uint32_t), indices.data())) return false;
    if (!memory.gather(offer.source, row_bytes, {indices.data(), count}, out + row * row_bytes)) return false;
  }
  return memory.read(offer.offset, message.meta_bytes, out + message.row_bytes);
}

void Fabric::Progress::receive_taken(Channel& channel, uint64_t sequence) {
  auto taken = channel.offers.extract(sequence);
  // Offers that ended with an error may have been taken before the peer learned it.
  if (taken.empty()) return;
  ++messages_sent_;
  bytes_sent_ += taken.mapped().message.row_bytes + taken.mapped().message.meta_bytes;
  taken.mapped().message = {};
  taken.mapped().done(std::nullopt);
  close_if_quiet(channel);
}

ucs_status_t Fabric::Progress::refuse() {
  ++messages_refused_;
  return UCS_OK;
}

}  // namespace switchyard::ucx
