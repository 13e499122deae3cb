#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/slab.h"
#include "runtime/error.h"
#include "ucx/tls.h"

namespace switchyard::ucx {

/** A secret of one channel; both ends learn it over the authenticated control plane. */
using Key = std::array<uint8_t, 16>;

/**
 * A message as it lies in a slab: `row_bytes` of rows, then `meta_bytes` of encoded metadata. One contiguous region goes
 * out and comes in, so the metadata may be longer than a transport's active-message header.
 */
struct Message {
  SlabRef slab;
  size_t row_bytes = 0;
  size_t meta_bytes = 0;
  /** Of a message that arrived: when its header was here, and when all of it. */
  std::chrono::steady_clock::time_point announced{}, arrived{};
  /** Of a message made by `select_rows`: the rows are these, and `slab` holds metadata and the choice of rows. */
  SlabRef source{};
  /** Of one row in `source`. */
  size_t source_row_bytes = 0;
};

/**
 * A message of some rows of a slab: row i is bytes [indices[i] * row_bytes, (indices[i] + 1) * row_bytes) of `source`. They
 * are gathered by whoever copies them first: the receiver, if it has mapped this process's slabs. Throws
 * INVALID_ARGUMENT if a row is not in the slab, RESOURCE_EXHAUSTED.
 */
Message select_rows(SlabArena& arena, SlabRef source, size_t row_bytes, std::span<const uint32_t> indices,
                    std::span<const uint8_t> metadata);

/** Called by who drives UCX. Callbacks must not block and must not throw. */
struct ChannelEvents {
  /** In the order in which the peer sent. */
  std::function<void(Message)> received;
  /** The channel is of no more use: the peer is gone or broke the rules. Called at most once. */
  std::function<void(Error)> failed;
};

struct ChannelLimits {
  /** Rows plus metadata of one incoming message. */
  size_t message_bytes_max;
  /** Messages that have come before one that was sent earlier, which they wait for. */
  size_t early_bytes_max = size_t{1} << 30;
  /** Set: messages that leave this machine travel on a stream that this encrypts, or not at all. */
  std::optional<Secret> secret{};
};

struct FabricStats {
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
  /** Bytes that the processor copied out of a transport's buffer because the message was not zero-copy. */
  uint64_t bytes_copied = 0;
  /** Bytes that came by one copy from the peer's slabs on this machine. */
  uint64_t bytes_taken = 0;
  /** Bytes that were read from a stream straight into their slabs. */
  uint64_t bytes_streamed = 0;
  /** Messages dropped for an unknown channel, a wrong key or a size over the limit. */
  uint64_t messages_refused = 0;
  /** UCX workers through which nothing came any more, or which waited for a dead peer, so that others took their place. */
  uint64_t workers_replaced = 0;
  /** Nanoseconds that the event loop which drives UCX looked for messages, where it could have slept. */
  uint64_t looked_ns = 0;

  FabricStats& operator+=(const FabricStats& other) {
    messages_sent += other.messages_sent;
    messages_received += other.messages_received;
    bytes_sent += other.bytes_sent;
    bytes_received += other.bytes_received;
    bytes_copied += other.bytes_copied;
    bytes_taken += other.bytes_taken;
    bytes_streamed += other.bytes_streamed;
    messages_refused += other.messages_refused;
    workers_replaced += other.workers_replaced;
    looked_ns += other.looked_ns;
    return *this;
  }
};

/** Whom a fabric can reach. The environment's UCX_TLS and UCX_NET_DEVICES come before it. */
enum class Reach {
  /** Processes of this machine, by shared memory, which the system keeps to one user. No port is opened. */
  machine,
  /** Other machines too. UCX opens ports on every network device. */
  network,
  /** The same, by TCP alone, beside which streams can be made that encrypt. */
  encrypted,
  /**
   * As `network` and `encrypted`, without shared memory. UCX wakes a peer that it writes to there by a Unix socket with an abstract address, and
   * a peer in another network namespace never hears of it.
   */
  network_apart,
  encrypted_apart,
};
inline constexpr size_t reaches = 5;

/**
 * Who sends to a channel. Each kind sends to a UCX worker of its own: a peer that dies as it writes can cost this process the channels to all
 * peers of its kind, and to no others.
 */
enum class Peers { nodes, clients };
inline constexpr size_t kinds_of_peers = 2;

/**
 * A UCX context, its workers, and the thread that drives them. Between processes of one machine a long message stays in
 * the sender's slab, is announced, and is copied from there by the receiver, where the system lets it map the sender's
 * slabs. Messages travel on channels. A channel is opened for receiving first, which yields its number; number, key and worker address go to the peer over the control plane, and
 * `connect` then makes it a sending channel too. All members are thread-safe. Work is handed to the progress thread,
 * which polls while messages flow and sleeps on an event descriptor otherwise, or leaves light messages to an event loop; a short message is sent by its
 * caller while that thread sleeps or yields. They are virtual because the addon loads
 * the library with their code when it is first used.
 */
class Fabric {
 public:
  /** Throws INTERNAL with UCX's words when no context can be made. `arena` must outlive the fabric. */
  explicit Fabric(SlabArena& arena, Reach reach = Reach::network);
  /** Closes every channel (bounded wait), then the workers. Events may be called until it returns. */
  virtual ~Fabric();
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;

  /** The address of the worker for such peers, for `connect` at a peer. It changes when that worker is replaced, which ends its channels. */
  virtual std::vector<uint8_t> address(Peers peers = Peers::nodes);

  /** Accepts messages that carry this key from now on. Throws INTERNAL when no worker can be made, RESOURCE_EXHAUSTED where file descriptors are too few for one. */
  virtual uint64_t open(const Key& key, ChannelLimits limits, ChannelEvents events, Peers peers = Peers::nodes);

  using ConnectDone = std::function<void(std::optional<Error>)>;
  /** Makes `channel` send to `peer_channel` of the fabric at `peer_address`. */
  virtual void connect(uint64_t channel, std::vector<uint8_t> peer_address, uint64_t peer_channel, ConnectDone done);

  using SendDone = std::function<void(std::optional<Error>)>;
  /**
   * `done` is called when the slab may be used again, with an error when the message may not have arrived: by who drives UCX, or
   * before `send` returns.
   */
  virtual void send(uint64_t channel, Message message, SendDone done);

  /**
   * Later channels to the peer of `channel` get a way of their own: the one that this channel shares with others may lead
   * nowhere any more, as after a cut of the network.
   */
  virtual void abandon(uint64_t channel);

  using CloseDone = std::function<void()>;
  static constexpr std::chrono::milliseconds flush_wait{5000};
  /**
   * Forgets the channel once what was sent has left, or the peer is gone, and gives up what has not left within `flush`: a peer
   * that stands still takes nothing. `done` is called when no message of the channel uses memory any more; `failed` is not
   * called. Idempotent.
   */
  virtual void close(uint64_t channel, CloseDone done, std::chrono::milliseconds flush = flush_wait);

  /**
   * Lets one event loop drive UCX while messages are light: a thread less has to wake for each. Returns a descriptor that is readable when
   * `drive` should be called, or nothing if another loop does so.
   */
  virtual std::optional<int> attach_loop();
  /** The loop calls `drive` no more. */
  virtual void detach_loop();
  /** Takes what has come. True: call it again when that has been used, or more may come at any moment; until then the descriptor is of no use. */
  virtual bool drive();

  /** The transports that carry the channel's messages, for example "mapped sysv posix" or "stream tcp" or "tls tcp", or empty before `connect`. */
  virtual std::string transports(uint64_t channel);

  virtual FabricStats stats() const;

  /** The library's version, for example "1.13.1". */
  static std::string version();

 private:
  class Progress;
  std::unique_ptr<Progress> progress_;
};

}  // namespace switchyard::ucx
