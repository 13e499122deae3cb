#pragma once

#include <sys/epoll.h>
#include <ucp/api/ucp.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "ucx/descriptors.h"
#include "ucx/fabric.h"
#include "ucx/peer_memory.h"
#include "ucx/probe.h"
#include "ucx/stream.h"
#include "ucx/waits.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

inline Error gone(ucs_status_t status) {
  return Error(Code::link_lost, std::string("the UCX peer is gone: ") + ucs_status_string(status));
}

/** `poll` tells when `descriptor` can be read. Throws INTERNAL. */
inline void wake_on(int poll, int descriptor) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = descriptor}};
  if (epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event) != 0) throw Error(Code::internal, "epoll_ctl failed");
}

/** How often a process looks whether what is sent to it comes through, beside whenever a peer has gone. */
inline constexpr auto probe_period = std::chrono::seconds(5);

inline Error blocked() {
  return Error(Code::link_lost,
               "nothing came through over UCX any more: a peer died, or stands still, in the middle of a write; all channels of its kind begin anew");
}

inline Error broken(const std::string& what) {
  return Error(Code::invalid_argument, "the UCX peer broke the protocol: " + what);
}

inline Error closed_channel(uint64_t id) {
  return Error(Code::link_lost, "UCX channel " + std::to_string(id) + " is closed");
}

/**
 * The progress thread drives UCX, or the event loop in its turn. Other threads hand it commands through a queue and an event descriptor, or, if it leaves
 * UCX alone just then, send a short message themselves: to wake it would take longer.
 */
class Fabric::Progress {
 public:
  Progress(SlabArena& arena, Reach reach);
  ~Progress();

  std::vector<uint8_t> address(Peers peers);
  uint64_t open(const Key& key, ChannelLimits limits, ChannelEvents events, Peers peers);
  void connect(uint64_t id, std::vector<uint8_t> peer_address, uint64_t peer_channel, ConnectDone done);
  void send(uint64_t id, Message message, SendDone done);
  void abandon(uint64_t id);
  std::optional<int> attach_loop();
  void detach_loop();
  bool drive();
  void close(uint64_t id, CloseDone done, std::chrono::milliseconds flush);
  std::string transports(uint64_t id);
  FabricStats stats() const;

 private:
  struct Worker;
  struct Channel;
  struct Endpoint;
  struct Listener {
    int socket;
    Place place;
    bool encrypts;
  };
  struct SendRequest;
  struct ReceiveRequest;
  using Command = std::function<void()>;

  // Setup and teardown, on the constructing thread.
  void create_context(Reach reach);
  void create_events();
  void destroy();

  // The loop.
  void enqueue(Command command);
  void run();
  void wake();
  bool run_commands();
  bool sleep(std::unique_lock<std::mutex>& driving);
  bool loop_stands_still();
  void loop_is_back();
  void close_all();

  // Workers: workers.cc.
  std::shared_ptr<Worker> worker_for(Peers peers);
  std::shared_ptr<Worker> create_worker();
  void take_on(const std::shared_ptr<Worker>& worker);

  // Everything below runs with `driving_` held. The event loop's turn: loop.cc.
  void leave_to_loop();
  void leave_to_thread();
  void keep_from_loop();
  bool is_for_thread(size_t bytes);

  // Workers: workers.cc.
  unsigned progress();
  bool arm();
  int nap_after(std::chrono::steady_clock::time_point now);
  void suspect(ucp_ep_h endpoint);
  void replace(Worker& worker);
  void retire(Worker& worker);
  void send_probes(Worker& worker, std::chrono::steady_clock::time_point now);
  void make_probes(Worker& worker);
  void drop_probers();
  bool watch_workers(std::chrono::steady_clock::time_point now);
  bool nothing_under_way() const;

  // Channels: channel.cc.
  Channel* take_in(uint64_t id);
  void connect_now(uint64_t id, const std::vector<uint8_t>& peer_address, uint64_t peer_channel, ConnectDone done);
  void close_now(uint64_t id, CloseDone done, std::chrono::milliseconds flush);
  void give_up(Channel& channel);
  void give_up_late();
  void unmap_unused();
  std::optional<std::chrono::steady_clock::time_point> next_look() const;
  void close_if_quiet(Channel& channel);
  void finish_close(uint64_t id);
  void fail(Channel& channel, Error error);

  // Endpoints: endpoints.cc.
  ucs_status_t find_endpoint(Worker& worker, const std::vector<uint8_t>& peer_address, ucp_ep_h& endpoint);
  void hear(ucp_ep_h endpoint);
  void endpoint_over(ucp_ep_h endpoint, const Error& error);
  static void close_endpoint(Worker& worker, ucp_ep_h endpoint, bool force);
  static void say_goodbye(const Endpoint& endpoint);
  void receive_goodbye(std::span<const uint8_t> peer_address);

  // Streams: streams.cc.
  void offer_stream(Channel& channel);
  void receive_stream_offer(Channel& channel, const Place& place);
  std::optional<Place> listen(const std::string& interface, bool encrypts);
  void accept_from(int listener);
  Stream& add_stream(int socket, std::unique_ptr<TlsSession> tls);
  void push(Channel& channel, Stream::Outgoing outgoing);
  void write(Stream& stream);
  void watch(Stream& stream);
  bool serve_streams();
  bool streams_wait() const;
  void serve(Stream& stream, uint32_t events);
  std::optional<Message> begin(Stream& stream, const WireHeader& header);
  std::optional<Message> adopt(Channel& channel, Stream& stream, const WireHeader& header);
  void stream_over(Stream& over);
  static void end_sends(Stream& stream, const Error& error);
  void close_streams();

  // Channels with a secret: guard.cc.
  bool guarded(Channel& channel);
  std::optional<Error> why_unguarded(Channel& channel);
  std::optional<Secret> secret_of(uint64_t channel) const;
  void send_guarded(Channel& channel, Message message, SendDone done);
  void send_waiting(uint64_t id);
  static void end_waiting(Channel& channel, const Error& error);

  // What goes out: send.cc.
  bool send_at_once(uint64_t id, Message& message, SendDone& done);
  bool is_light(uint64_t id, const Message& message) const;
  void send_now(uint64_t id, Message message, SendDone done);
  static std::optional<Error> why_unsendable(const Channel& channel);
  void offer(Channel& channel, Message message, SendDone done);
  bool gather(Message& message, SendDone& done);
  static WireHeader next_header(Channel& channel, const Message& message);
  void send_control(Channel& channel, Kind kind, uint64_t sequence = 0, const void* data = nullptr, size_t length = 0);
  void transmit(Channel& channel, std::unique_ptr<SendRequest> request, const void* data, size_t length);
  void ended(uint64_t id, bool held);
  void end_offers(Channel& channel, const Error& error);

  // What comes in: receive.cc.
  ucs_status_t receive(Worker& worker, const WireHeader& header, void* data, size_t length, const ucp_am_recv_param_t& param);
  void receive_control(Channel& channel, const WireHeader& header, const void* data, size_t length);
  void receive_setup(Channel& channel, const WireHeader& header, std::span<const std::byte> data);
  void refuse_malformed(Channel& channel, const WireHeader& header, size_t length);
  void receive_challenge(Channel& channel, const Mark& mark);
  void receive_beacon(Channel& channel, const Beacon& beacon);
  void receive_offer(Channel& channel, const WireHeader& header, const Offer& offer);
  void take_offer(Channel& channel, const WireHeader& header, const Offer& offer);
  static bool take(PeerMemory& memory, const Offer& offer, const Message& message);
  void receive_taken(Channel& channel, uint64_t sequence);
  std::optional<Message> allocate(Channel& channel, const WireHeader& header, size_t length);
  void send_beacon(Channel& channel);
  void deliver(uint64_t id, uint64_t sequence, Message message);
  ucs_status_t refuse();

  static ucs_status_t on_message(void* worker, const void* header, size_t header_length, void* data, size_t length,
                                 const ucp_am_recv_param_t* param);
  static ucs_status_t on_stray(void* worker, const void* header, size_t header_length, void* data, size_t length,
                               const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* user_data);
  static void on_received(void* request, ucs_status_t status, size_t length, void* user_data);
  static void on_endpoint_error(void* self, ucp_ep_h endpoint, ucs_status_t status);

  SlabArena& arena_;
  const Descriptors descriptors_;
  /** As of transports_of. */
  const std::string transports_;
  const bool peer_memory_allowed_;
  /** Those of them by which processes of this machine write to each other. */
  const std::vector<const char*> queue_transports_;
  const std::chrono::microseconds look_time_;
  ucp_context_h context_ = nullptr;
  int command_events_ = -1;
  int stream_events_ = -1;
  /** The descriptors that tell of what comes: of streams, and of the workers that are armed. Used with `driving_` held. */
  std::vector<int> wakes_;
  /** What the event loop watches: in its turn UCX and the streams, and whether it has stood still. */
  int loop_events_ = -1;
  int back_events_ = -1;

  /** Held by who calls UCX: the thread while it neither sleeps nor yields. Before `mutex_`, if both. */
  std::mutex driving_;
  std::mutex mutex_;
  std::deque<Command> commands_;
  /** Opened, and not taken in yet. */
  std::map<uint64_t, std::unique_ptr<Channel>> opening_;
  bool closing_ = false;
  /** By kind of peers; null: none is needed yet. With `workers_mutex_` held: after `driving_`, before `mutex_`. */
  std::array<std::shared_ptr<Worker>, kinds_of_peers> current_{};
  std::mutex workers_mutex_;
  /** The thread waits for events, a command among them. */
  bool sleeping_ = false;

  /** An event loop may drive. */
  std::atomic<bool> has_loop_{false};
  /** Several wanted to: none does any more. With `mutex_` held. */
  bool has_several_ = false;
  /** It drives, and not the thread. Changes with `driving_` held. */
  std::atomic<bool> loops_turn_{false};
  /** In its turn: UCX will tell of what comes. */
  std::atomic<bool> armed_{false};
  /** It did not come when it was wanted, and has not come since. */
  std::atomic<bool> loop_stands_{false};
  /** Calls of drive(), and as many as there were when the thread last looked. */
  std::atomic<unsigned> drives_{0};
  unsigned seen_drives_ = 0;

  // Used with `driving_` held.
  /** Of the loop, in its turn. */
  Waits waits_;
  /** In a row, without anything to do and without being able to wait. */
  unsigned vain_turns_ = 0;
  /** The loop gets no turn before. */
  std::chrono::steady_clock::time_point threads_until_{};
  /** Those that are retired stay for a while, and until nothing of theirs is under way. */
  std::vector<std::shared_ptr<Worker>> workers_;
  /** By transport. Made when they are needed; those that this system has not are null. */
  std::map<const char*, std::unique_ptr<Prober>> probers_;
  std::map<uint64_t, std::unique_ptr<Channel>> channels_;
  std::unordered_set<ReceiveRequest*> receiving_;
  std::unordered_set<SendRequest*> sending_;
  /** Those that were made here and have not ended. */
  std::vector<Endpoint> endpoints_;
  /** By socket. */
  std::unordered_map<int, std::unique_ptr<Stream>> streams_;
  /** Sockets of streams that have not shown the key of a channel, the oldest first. */
  std::deque<int> strangers_;
  /** By network interface, and whether what comes there is encrypted. */
  std::map<std::pair<std::string, bool>, Listener> listeners_;
  /** The fabric ends: nothing is waited for that a peer may never do. */
  bool ending_ = false;
  /** Channels that close, by the time at which they give up what has not left. Those that have closed by then are gone. */
  std::multimap<std::chrono::steady_clock::time_point, uint64_t> flushing_;
  /** What is mapped of peers for channels that have closed, by the time at which it is given up: the next one needs it again. */
  std::deque<std::pair<std::chrono::steady_clock::time_point, std::shared_ptr<PeerFile>>> unused_files_;
  /** What a callback of UCX must not do itself. */
  std::deque<Command> deferred_;

  std::atomic<uint64_t> next_channel_{1};
  std::atomic<uint64_t> messages_sent_{0}, messages_received_{0}, bytes_sent_{0}, bytes_received_{0}, bytes_copied_{0},
      bytes_taken_{0}, bytes_streamed_{0}, messages_refused_{0}, workers_replaced_{0}, looked_ns_{0};
  std::thread thread_;
};

/** A UCX worker: what peers of a kind send to, and all that this process sends to them. */
struct Fabric::Progress::Worker {
  Progress* owner;
  ucp_worker_h handle = nullptr;
  std::vector<uint8_t> address{};
  /** Readable when something may have come, once the worker is armed. */
  int events = -1;
  /** Sends, receives and closing endpoints that UCX has not ended; it aborts the process if a worker is destroyed under them. */
  size_t under_way = 0;
  /** By transport whose queue a peer could block, once they are needed; null: the worker has not that one. */
  std::map<const char*, std::unique_ptr<Probe>> probes{};
  /** Once it has peers, probes are sent then, unless there are no channels; at once if the worker is suspected: a peer has gone, perhaps as it wrote. */
  std::optional<std::chrono::steady_clock::time_point> next_probe{};
  bool suspected = false;
  /** Since when it has done nothing and could not be armed. */
  std::optional<std::chrono::steady_clock::time_point> unarmed_since{};
  /** Since it could be armed: a peer of it has gone, and naps of the thread. */
  bool lost_peer = false;
  unsigned naps = 0;
  /** New peers are given another. */
  bool replaced = false;
  /** All that it had has ended. */
  bool retired = false;
  /** Of one that is retired. */
  std::chrono::steady_clock::time_point destroyed_at{};

  void destroy() { ucp_worker_destroy(std::exchange(handle, nullptr)); }
};

/** A message in this process's memory, for the peer to read. */
struct Outstanding {
  Message message;
  Fabric::SendDone done;
};

/**
 * All channels to a peer share an endpoint, which stays until the peer is gone. UCX joins the endpoints of two workers by
 * their numbers, in the order in which each side makes them; if one side closed an endpoint for which the other has none, the
 * other's next one would be joined with it, and what is sent there is lost without a word.
 */
struct Fabric::Progress::Endpoint {
  ucp_ep_h handle;
  Worker* worker;
  std::vector<uint8_t> peer_address;
  /** Serves the channels that it has, and no others. */
  bool abandoned = false;
  /** The peer has said something. */
  bool heard = false;
  /** What is mapped of the peer's memory, for all its channels: they hold it, and `unused_files_`. */
  std::weak_ptr<PeerFile> file{};
};

/** What carries the messages of an endpoint. */
struct Lane {
  /** For example "tcp". */
  std::string transport;
  /** For example "eth0". */
  std::string device;
};

/** UCX 1.13 tells the lanes of an endpoint in its text for people alone. */
std::vector<Lane> lanes_of(ucp_ep_h endpoint);

/** The one of TCP, if there is one. */
std::optional<Lane> tcp_lane(const std::vector<Lane>& lanes);

struct Fabric::Progress::Channel {
  uint64_t id;
  Key key;
  ChannelLimits limits;
  ChannelEvents events;
  std::shared_ptr<Worker> worker;
  /** Null before the channel is connected, and when the endpoint has ended. */
  ucp_ep_h endpoint = nullptr;
  uint64_t peer_channel = 0;
  uint64_t next_sent = 0;
  uint64_t next_delivered = 0;
  /** Complete, but a message sent before is not. */
  std::map<uint64_t, Message> early{};
  /** Of their slabs. */
  size_t early_bytes = 0;
  std::optional<Error> failure{};

  /** The number that this side chose, and, once the peer has shown that it holds it, the peer's memory. */
  Mark challenge{};
  std::unique_ptr<PeerMemory> peer_memory{};
  std::optional<Mark> peer_challenge{};
  /** The number that the peer chose; it is read here. */
  std::optional<HeldMark> mark{};
  /** The peer has read the mark, so it can read messages. */
  bool may_offer = false;
  std::map<uint64_t, Outstanding> offers{};

  /**
   * For long messages to a peer that is reached by TCP alone: UCX gives up writing into the receiver's memory where it is to
   * notice a peer's death, and cuts them into pieces that the receiver copies. Owned by `streams_`.
   */
  Stream* stream = nullptr;
  /** Of a channel with a secret: whether shared memory alone carries its messages, once that is known, and those that wait for a stream. */
  std::optional<bool> stays_here{};
  std::deque<std::pair<Message, SendDone>> waiting{};

  bool peer_closing = false;
  /** Messages that UCX sends or receives. */
  size_t under_way = 0;
  /** Of those, the ones with a slab. */
  size_t holding = 0;
  /** Closing ends when the peer has taken what was offered, and nothing is under way. */
  bool closing = false;
  /** Nothing of it is waited for but what UCX holds. */
  bool given_up = false;
  std::vector<CloseDone> closed{};
};

struct Fabric::Progress::SendRequest {
  Worker* worker;
  uint64_t channel;
  WireHeader header;
  /** Data of a control message. */
  std::array<uint8_t, std::max(sizeof(Beacon), sizeof(Place))> control;
  Message message;
  SendDone done;
};

struct Fabric::Progress::ReceiveRequest {
  Worker* worker;
  uint64_t channel;
  uint64_t sequence;
  Message message;
};

}  // namespace switchyard::ucx
