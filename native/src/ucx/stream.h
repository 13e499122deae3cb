#pragma once

#include <sys/epoll.h>
#include <sys/uio.h>

#include <deque>
#include <functional>
#include <optional>

#include "ucx/fabric.h"
#include "ucx/tls.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/**
 * A TCP connection that carries messages: a header, then rows and metadata as they lie in a slab, and so on. Nothing blocks:
 * `read` and `write` move what the socket takes at the moment, and no more than a share, so that others have their turn.
 */
class Stream {
 public:
  struct Outgoing {
    WireHeader header;
    /** Without a slab: the header alone is sent. */
    Message message{};
    Fabric::SendDone done{};
  };

  /** Connects; `write` says whether it succeeded. Returns -1 if there can be no socket. */
  static int connect(const Place& place);
  /** Waits for connections at an address with port 0, and sets the port. Returns -1 if it cannot. */
  static int listen(Place& place);

  /** Takes over a connected or connecting socket. `tls`: null, or what encrypts the connection. */
  explicit Stream(int socket, std::unique_ptr<TlsSession> tls = nullptr);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int socket() const { return socket_; }
  const TlsSession* tls() const { return tls_.get(); }
  void push(Outgoing outgoing) { queue_.push_back(std::move(outgoing)); }
  /** Nothing is left to be sent. */
  bool idle() const { return queue_.empty() && !(tls_ && tls_->unsent()); }
  /** Room in the socket is waited for: while the peer is to say something first, it is not. */
  bool wants_room() const { return tls_ ? tls_->unsent() || (!queue_.empty() && tls_->established()) : !queue_.empty(); }
  /** Gives up what has not been sent. */
  std::deque<Outgoing> take_queue();

  /** False if the connection is over. `sent` is called for what the socket has taken. */
  bool write(const std::function<void(Outgoing)>& sent);

  /**
   * False if the connection is over, or `begin` has refused. `begin` gets a header and returns where what it announces goes, a
   * message without a slab if it announces nothing, or nothing to refuse. `end` gets the message when it is complete.
   */
  bool read(const std::function<std::optional<Message>(const WireHeader&)>& begin,
            const std::function<void(const WireHeader&, Message)>& end);

  /** 0 until the peer has shown the key of a channel. */
  uint64_t channel = 0;
  /** Both ends may send on it. Neither closes it before both are closing the channel: messages could be lost. */
  bool ready = false;
  /** The events of its socket that are waited for, as epoll has them. */
  uint32_t watched = EPOLLIN;

 private:
  ssize_t receive(std::byte* to, size_t wanted, bool fetch);
  ssize_t transmit(iovec (&parts)[2]);
  void wake_at(size_t bytes);

  const int socket_;
  const std::unique_ptr<TlsSession> tls_;
  int wake_at_ = 1;
  std::deque<Outgoing> queue_;
  /** Of the first in the queue, header included. */
  size_t bytes_sent_ = 0;
  WireHeader header_{};
  Message message_{};
  /** Of the message that is arriving, header included. */
  size_t bytes_read_ = 0;
};

}  // namespace switchyard::ucx
