#pragma once

#include <ucp/api/ucp.h>

#include <atomic>
#include <deque>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "ucx/fabric.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/**
 * The progress thread: it alone calls UCX after construction. Other threads hand it commands through a queue and an
 * event descriptor.
 */
class Fabric::Progress {
 public:
  explicit Progress(SlabArena& arena);
  ~Progress();

  const std::vector<uint8_t>& address() const { return address_; }
  uint64_t open(const Key& key, ChannelLimits limits, ChannelEvents events);
  void connect(uint64_t id, std::vector<uint8_t> peer_address, uint64_t peer_channel, ConnectDone done);
  void send(uint64_t id, Message message, SendDone done);
  void close(uint64_t id, CloseDone done);
  std::string transports(uint64_t id);
  FabricStats stats() const;

 private:
  struct Channel;
  struct SendRequest;
  struct ReceiveRequest;
  using Command = std::function<void()>;

  // Setup and teardown, on the constructing thread.
  void create_context();
  void create_worker();
  void destroy();

  // The loop.
  void enqueue(Command command);
  void run();
  bool run_commands();
  void wait_for_events();
  void close_all();

  // On the progress thread.
  void send_now(uint64_t id, Message message, SendDone done);
  void close_now(uint64_t id, CloseDone done);
  void close_endpoint(ucp_ep_h endpoint, bool force, CloseDone done);
  void fail(Channel& channel, Error error);
  ucs_status_t receive(const WireHeader& header, void* data, size_t length, bool rendezvous);
  void deliver(uint64_t id, uint64_t sequence, Message message);
  ucs_status_t refuse();

  static ucs_status_t on_message(void* self, const void* header, size_t header_length, void* data, size_t length,
                                 const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* user_data);
  static void on_received(void* request, ucs_status_t status, size_t length, void* user_data);
  static void on_endpoint_error(void* channel, ucp_ep_h endpoint, ucs_status_t status);

  SlabArena& arena_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  std::vector<uint8_t> address_;
  int worker_events_ = -1;
  int command_events_ = -1;
  int poll_events_ = -1;

  std::mutex mutex_;
  std::deque<Command> commands_;
  bool closing_ = false;

  // Owned by the progress thread.
  std::map<uint64_t, std::unique_ptr<Channel>> channels_;
  std::unordered_set<ReceiveRequest*> receiving_;
  std::unordered_set<SendRequest*> sending_;
  size_t endpoints_closing_ = 0;

  std::atomic<uint64_t> next_channel_{1};
  std::atomic<uint64_t> messages_sent_{0}, messages_received_{0}, bytes_sent_{0}, bytes_received_{0}, bytes_copied_{0},
      messages_refused_{0};
  std::thread thread_;
};

struct Fabric::Progress::Channel {
  Progress* owner;
  uint64_t id;
  Key key;
  ChannelLimits limits;
  ChannelEvents events;
  ucp_ep_h endpoint = nullptr;
  uint64_t peer_channel = 0;
  uint64_t next_sent = 0;
  uint64_t next_delivered = 0;
  /** Complete, but a message sent before is not. */
  std::map<uint64_t, Message> early;
  std::optional<Error> failure;
};

struct Fabric::Progress::SendRequest {
  Progress* owner;
  WireHeader header;
  Message message;
  SendDone done;
};

struct Fabric::Progress::ReceiveRequest {
  Progress* owner;
  uint64_t channel;
  uint64_t sequence;
  Message message;
};

}  // namespace switchyard::ucx
