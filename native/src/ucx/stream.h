#pragma once

#include <sys/epoll.h>

#include <deque>
#include <functional>
#include <optional>

#include "ucx/fabric.h"
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

  /** Takes over a connected or connecting socket. */
  explicit Stream(int socket);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int socket() const { return socket_; }
  void push(Outgoing outgoing) { queue_.push_back(std::move(outgoing)); }
  bool idle() const { return queue_.empty(); }
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
  void wake_at(size_t bytes);

  const int socket_;
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
