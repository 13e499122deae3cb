#include <ifaddrs.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <regex>

#include "ucx/progress.h"

namespace switchyard::ucx {
namespace {

/** Connections that may be kept without having shown the key of a channel. The oldest makes way for a new one. */
constexpr size_t strangers_max = 64;

std::string describe(ucp_ep_h endpoint) {
  char* text = nullptr;
  size_t length = 0;
  FILE* stream = open_memstream(&text, &length);
  if (!stream) return "";
  ucp_ep_print_info(endpoint, stream);
  std::fclose(stream);
  const std::string info(text, length);
  std::free(text);
  return info;
}

Error no_stream() { return Error(Code::link_lost, "no encrypted stream to the UCX peer can be made"); }

/** The address of a network interface, with port 0. */
std::optional<Place> address_of(const std::string& interface) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return std::nullopt;
  std::optional<Place> found;
  for (const ifaddrs* one = all; one; one = one->ifa_next) {
    if (!one->ifa_addr || interface != one->ifa_name) continue;
    Place place;
    if (one->ifa_addr->sa_family == AF_INET) {
      std::memcpy(&place.address, one->ifa_addr, sizeof(sockaddr_in));
      found = place;
      break;
    }
    if (one->ifa_addr->sa_family != AF_INET6 || found) continue;
    std::memcpy(&place.address, one->ifa_addr, sizeof(sockaddr_in6));
    if (!IN6_IS_ADDR_LINKLOCAL(&place.address.sin6_addr)) found = place;
  }
  freeifaddrs(all);
  return found;
}

}  // namespace

std::vector<Lane> lanes_of(ucp_ep_h endpoint) {
  // For example: "#   lane[0]:  3:sysv/memory.0 md[2] -> md[2]/sysv/sysdev[255] am am_bw#0 keepalive".
  static const std::regex pattern(R"(lane\[\d+\]:\s+\d+:(\w+)/(\S+)\.\d+ )");
  const std::string info = describe(endpoint);
  std::vector<Lane> lanes;
  for (std::sregex_iterator match(info.begin(), info.end(), pattern), end; match != end; ++match) {
    lanes.push_back({(*match)[1], (*match)[2]});
  }
  return lanes;
}

std::optional<Lane> tcp_lane(const std::vector<Lane>& lanes) {
  const auto found = std::ranges::find(lanes, "tcp", &Lane::transport);
  return found == lanes.end() ? std::nullopt : std::optional(*found);
}

/** Once both ends can send, the one with the smaller challenge listens for the other. */
void Fabric::Progress::offer_stream(Channel& channel) {
  if (!channel.endpoint || !channel.peer_challenge || channel.challenge >= *channel.peer_challenge) return;
  if (channel.failure || channel.closing || channel.stream) return;
  const std::vector<Lane> lanes = lanes_of(channel.endpoint);
  const auto lane = tcp_lane(lanes);
  const bool encrypts = guarded(channel);
  if (!lane || !(encrypts || std::ranges::all_of(lanes, [](const Lane& one) { return one.transport == "tcp"; }))) return;
  if (const auto place = listen(lane->device, encrypts)) {
    send_control(channel, Kind::stream_offer, 0, &*place, sizeof(*place));
  } else if (encrypts) {
    fail(channel, Error(Code::link_lost, "no port of " + lane->device + " can be opened for an encrypted stream"));
  }
  // Otherwise all messages take the endpoint that there is.
}

/** Where peers may connect by a network interface, from now on until the fabric ends. */
std::optional<Place> Fabric::Progress::listen(const std::string& interface, bool encrypts) {
  const auto found = listeners_.find({interface, encrypts});
  if (found != listeners_.end()) return found->second.place;
  auto place = address_of(interface);
  if (!place) return std::nullopt;
  const int socket = Stream::listen(*place);
  if (socket < 0) return std::nullopt;
  listeners_[{interface, encrypts}] = {socket, *place, encrypts};
  epoll_event event{.events = EPOLLIN, .data = {.fd = socket}};
  epoll_ctl(stream_events_, EPOLL_CTL_ADD, socket, &event);
  return place;
}

void Fabric::Progress::receive_stream_offer(Channel& channel, const Place& place) {
  if (!channel.endpoint || channel.stream || channel.failure || channel.closing) return;
  const int socket = Stream::connect(place);
  const bool encrypts = guarded(channel);
  if (socket < 0 && encrypts) return fail(channel, no_stream());
  if (socket < 0) return;
  auto tls = encrypts ? TlsSession::connecting(socket, channel.peer_channel, *channel.limits.secret) : nullptr;
  channel.stream = &add_stream(socket, std::move(tls));
  channel.stream->channel = channel.id;
  push(channel, {.header = {.kind = Kind::stream_hello}});
}

Stream& Fabric::Progress::add_stream(int socket, std::unique_ptr<TlsSession> tls) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = socket}};
  epoll_ctl(stream_events_, EPOLL_CTL_ADD, socket, &event);
  auto& stream = streams_[socket];
  stream = std::make_unique<Stream>(socket, std::move(tls));
  return *stream;
}

void Fabric::Progress::accept_from(int listener) {
  const int socket = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (socket < 0) return;
  const auto place = std::ranges::find_if(listeners_, [&](const auto& one) { return one.second.socket == listener; });
  const bool encrypts = place != listeners_.end() && place->second.encrypts;
  const auto secret = [this](uint64_t channel) { return secret_of(channel); };
  add_stream(socket, encrypts ? TlsSession::accepting(socket, secret) : nullptr);
  strangers_.push_back(socket);
  if (strangers_.size() <= strangers_max) return;
  refuse();
  streams_.erase(strangers_.front());
  strangers_.pop_front();
}

/** Sends on the channel's stream. */
void Fabric::Progress::push(Channel& channel, Stream::Outgoing outgoing) {
  outgoing.header.channel = channel.peer_channel;
  outgoing.header.key = channel.key;
  channel.stream->push(std::move(outgoing));
  write(*channel.stream);
}

void Fabric::Progress::write(Stream& stream) {
  const bool good = stream.write([this](Stream::Outgoing sent) {
    if (!sent.done) return;
    ++messages_sent_;
    bytes_sent_ += sent.message.row_bytes + sent.message.meta_bytes;
    // Whoever is told may count on the slab.
    sent.message = {};
    sent.done(std::nullopt);
  });
  if (!good) return stream_over(stream);
  watch(stream);
  if (!stream.idle()) return;
  const auto found = channels_.find(stream.channel);
  if (found != channels_.end()) close_if_quiet(*found->second);
}

/** Waits for room while something is to be sent, and for bytes while somebody takes them. */
void Fabric::Progress::watch(Stream& stream) {
  const auto found = channels_.find(stream.channel);
  const bool taken = found == channels_.end() || !found->second->closing;
  const uint32_t events = (taken ? EPOLLIN : 0u) | (stream.wants_room() ? EPOLLOUT : 0u);
  if (events == stream.watched) return;
  stream.watched = events;
  epoll_event event{.events = events, .data = {.fd = stream.socket()}};
  epoll_ctl(stream_events_, EPOLL_CTL_MOD, stream.socket(), &event);
}

/** False if there was nothing to do. */
bool Fabric::Progress::streams_wait() const {
  epoll_event event;
  return !(listeners_.empty() && streams_.empty()) && epoll_wait(stream_events_, &event, 1, 0) > 0;
}

bool Fabric::Progress::serve_streams() {
  if (listeners_.empty() && streams_.empty()) return false;
  epoll_event events[16];
  const int count = epoll_wait(stream_events_, events, 16, 0);
  for (int i = 0; i < count; ++i) {
    const auto found = streams_.find(events[i].data.fd);
    if (found != streams_.end()) {
      serve(*found->second, events[i].events);
    } else {
      accept_from(events[i].data.fd);
    }
  }
  return count > 0;
}

void Fabric::Progress::serve(Stream& stream, uint32_t events) {
  const bool readable = (events & EPOLLIN) != 0;
  if (readable && !stream.read([&](const WireHeader& header) { return begin(stream, header); },
                               [&](const WireHeader& header, Message message) {
                                 bytes_streamed_ += message.row_bytes + message.meta_bytes;
                                 deliver(stream.channel, header.sequence, std::move(message));
                               })) {
    return stream_over(stream);
  }
  // What was read may be the peer's part of the handshake.
  if (readable && stream.tls()) watch(stream);
  if (!readable && (events & (EPOLLERR | EPOLLHUP))) return stream_over(stream);
  if (events & EPOLLOUT) write(stream);
}

/** Where the bytes that follow a header go, as Stream::read has it. */
std::optional<Message> Fabric::Progress::begin(Stream& stream, const WireHeader& header) {
  const auto found = channels_.find(stream.channel > 0 ? stream.channel : header.channel);
  const bool known = header.magic == WireHeader::expected_magic && found != channels_.end() &&
                     header.channel == found->first && same_key(header.key, found->second->key);
  if (!known) {
    refuse();
    return std::nullopt;
  }
  Channel& channel = *found->second;
  if (channel.failure) return std::nullopt;
  if (stream.channel == 0) return adopt(channel, stream, header);
  if (header.kind == Kind::stream_ready && !stream.ready) {
    stream.ready = true;
    deferred_.push_back([this, id = channel.id] { send_waiting(id); });
    return Message{};
  }
  if (header.kind == Kind::message) {
    auto message = allocate(channel, header, header.row_bytes + header.meta_bytes);
    if (!message) refuse();
    return message;
  }
  refuse();
  fail(channel, broken("kind " + std::to_string(static_cast<uint32_t>(header.kind)) + " on a stream"));
  return std::nullopt;
}

/** Gives a stranger that holds its key to a channel. */
std::optional<Message> Fabric::Progress::adopt(Channel& channel, Stream& stream, const WireHeader& header) {
  if (header.kind != Kind::stream_hello || channel.stream || channel.closing || !channel.endpoint) return std::nullopt;
  const TlsSession* const tls = stream.tls();
  if (guarded(channel) != (tls != nullptr) || (tls && tls->channel() != channel.id)) {
    refuse();
    return std::nullopt;
  }
  std::erase(strangers_, stream.socket());
  stream.channel = channel.id;
  stream.ready = true;
  channel.stream = &stream;
  deferred_.push_back([this, id = channel.id] {
    const auto found = channels_.find(id);
    if (found != channels_.end() && found->second->stream) push(*found->second, {.header = {.kind = Kind::stream_ready}});
    send_waiting(id);
  });
  return Message{};
}

/** Closes a stream. A channel fails with it, since messages may be lost, unless one of its ends is leaving anyway. */
void Fabric::Progress::stream_over(Stream& over) {
  const auto node = streams_.extract(over.socket());
  const std::unique_ptr<Stream> stream = std::move(node.mapped());
  std::erase(strangers_, stream->socket());
  const auto found = channels_.find(stream->channel);
  if (found == channels_.end()) return;
  Channel& channel = *found->second;
  channel.stream = nullptr;
  const bool lost = stream->ready && !channel.closing && !channel.peer_closing;
  if (lost) fail(channel, Error(Code::link_lost, "the UCX peer is gone: its stream has ended"));
  else if (!stream->ready && stream->tls()) fail(channel, no_stream());
  end_sends(*stream, channel.failure.value_or(closed_channel(channel.id)));
  close_if_quiet(channel);
}

void Fabric::Progress::end_sends(Stream& stream, const Error& error) {
  for (Stream::Outgoing& outgoing : stream.take_queue()) {
    outgoing.message = {};
    if (outgoing.done) outgoing.done(error);
  }
}

/** Ends the streams that are left, and nobody can connect any more. */
void Fabric::Progress::close_streams() {
  const Error ended(Code::cancelled, "the UCX fabric closed before the message was sent");
  for (auto& [socket, stream] : streams_) end_sends(*stream, ended);
  streams_.clear();
  for (const auto& [key, listener] : listeners_) ::close(listener.socket);
  listeners_.clear();
}

}  // namespace switchyard::ucx
