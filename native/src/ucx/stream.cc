#include "ucx/stream.h"

#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace switchyard::ucx {
namespace {

/** What is moved in one direction before others have their turn: half a millisecond's work. Shorter turns cost throughput. */
constexpr size_t share = 2 * 1024 * 1024;
/** What must have arrived of a long message before this end is woken: to be woken for every packet costs both ends. */
constexpr size_t wake_bytes = 128 * 1024;
/** What the system may hold of a stream that has not arrived: more leaves the cache, and goes no faster within a data centre. */
constexpr int send_buffer_bytes = 512 * 1024;  // Linux doubles it.
constexpr int backlog = 64;

socklen_t length_of(const Place& place) {
  return place.address.sin6_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
}

bool must_wait() { return errno == EAGAIN || errno == EWOULDBLOCK; }

int open_socket(const Place& place) {
  return ::socket(place.address.sin6_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

}  // namespace

int Stream::connect(const Place& place) {
  const int socket = open_socket(place);
  if (socket < 0) return -1;
  const auto* address = reinterpret_cast<const sockaddr*>(&place.address);
  if (::connect(socket, address, length_of(place)) == 0 || errno == EINPROGRESS) return socket;
  ::close(socket);
  return -1;
}

int Stream::listen(Place& place) {
  const int socket = open_socket(place);
  if (socket < 0) return -1;
  auto* address = reinterpret_cast<sockaddr*>(&place.address);
  socklen_t length = length_of(place);
  if (::bind(socket, address, length) == 0 && ::listen(socket, backlog) == 0 &&
      getsockname(socket, address, &length) == 0) {
    return socket;
  }
  ::close(socket);
  return -1;
}

Stream::Stream(int socket, std::unique_ptr<TlsSession> tls) : socket_(socket), tls_(std::move(tls)) {
  const int on = 1;
  setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(socket_, SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof(send_buffer_bytes));
}

Stream::~Stream() { ::close(socket_); }

std::deque<Stream::Outgoing> Stream::take_queue() {
  bytes_sent_ = 0;
  return std::exchange(queue_, {});
}

ssize_t Stream::transmit(iovec (&parts)[2]) {
  if (tls_) {
    const iovec& part = parts[parts[0].iov_len > 0 ? 0 : 1];
    return tls_->send(part.iov_base, part.iov_len);
  }
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 2;
  return sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t Stream::receive(std::byte* to, size_t wanted, bool fetch) {
  return tls_ ? tls_->receive(to, wanted, fetch) : recv(socket_, to, wanted, MSG_DONTWAIT);
}

bool Stream::write(const std::function<void(Outgoing)>& sent) {
  for (size_t left = share; left > 0 && !queue_.empty();) {
    Outgoing& first = queue_.front();
    constexpr size_t head = sizeof(WireHeader);
    const size_t length = first.message.slab ? first.message.row_bytes + first.message.meta_bytes : 0;
    const size_t of_head = head - std::min(head, bytes_sent_);
    const size_t after = bytes_sent_ - std::min(head, bytes_sent_);
    iovec parts[2] = {{reinterpret_cast<char*>(&first.header) + (head - of_head), of_head}, {nullptr, 0}};
    if (length > after) parts[1] = {first.message.slab->data() + after, std::min(length - after, left)};
    const ssize_t moved = transmit(parts);
    if (moved < 0) {
      if (errno == EINTR) continue;
      return must_wait();
    }
    bytes_sent_ += moved;
    left -= std::min<size_t>(left, moved);
    if (bytes_sent_ < head + length) continue;
    Outgoing done = std::move(first);
    queue_.pop_front();
    bytes_sent_ = 0;
    sent(std::move(done));
  }
  return !tls_ || tls_->flush();
}

/** The socket counts as readable when so much has come, or the connection is over. */
void Stream::wake_at(size_t bytes) {
  const int wanted = static_cast<int>(std::min(bytes, wake_bytes));
  if (wanted == wake_at_) return;
  wake_at_ = wanted;
  setsockopt(socket_, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof(wanted));
}

bool Stream::read(const std::function<std::optional<Message>(const WireHeader&)>& begin,
                  const std::function<void(const WireHeader&, Message)>& end) {
  constexpr size_t head = sizeof(WireHeader);
  // What is held of an encrypted stream wakes nobody: it is taken at once.
  for (size_t left = share; left > 0 || tls_;) {
    const bool in_head = bytes_read_ < head;
    const size_t length = in_head ? 0 : message_.row_bytes + message_.meta_bytes;
    std::byte* const to =
        in_head ? reinterpret_cast<std::byte*>(&header_) + bytes_read_ : message_.slab->data() + (bytes_read_ - head);
    const size_t wanted = in_head ? head - bytes_read_ : std::min(head + length - bytes_read_, tls_ ? share : left);
    const ssize_t moved = receive(to, wanted, left > 0);
    if (moved == 0) return false;
    if (moved < 0) {
      if (errno == EINTR) continue;
      if (!must_wait()) return false;
      break;
    }
    bytes_read_ += moved;
    left -= std::min<size_t>(left, moved);
    if (in_head && bytes_read_ == head) {
      auto announced = begin(header_);
      if (!announced) return false;
      if (announced->slab) {
        message_ = std::move(*announced);
      } else {
        bytes_read_ = 0;
      }
    } else if (!in_head && bytes_read_ == head + length) {
      bytes_read_ = 0;
      end(header_, std::exchange(message_, {}));
    }
  }
  const size_t missing = head + (bytes_read_ < head ? 0 : message_.row_bytes + message_.meta_bytes) - bytes_read_;
  wake_at(tls_ ? missing - std::min(missing - 1, tls_->held()) : missing);
  return true;
}

}  // namespace switchyard::ucx
