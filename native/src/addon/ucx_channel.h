#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "addon/handle.h"
#include "ucx/fabric.h"

namespace switchyard::addon {

struct UcxPortOptions {
  ucx::Key key;
  size_t message_bytes_max;
  size_t inbox_bytes_max;
  bool report_sends;
  ucx::Peers peers;
  /** As in ucx::ChannelLimits. */
  std::optional<ucx::Secret> secret;
};

/** What JavaScript takes of a port at a time. */
struct UcxArrivals {
  std::vector<ucx::Message> messages;
  /** When messages sent have left, in the order of sending. */
  std::vector<std::chrono::steady_clock::time_point> sent;
};

/** A channel of the fabric, and what has come of it that JavaScript has not taken yet. */
class UcxPort : public std::enable_shared_from_this<UcxPort> {
 public:
  static std::shared_ptr<UcxPort> open(const std::shared_ptr<ucx::Fabric>& fabric, const UcxPortOptions& options);

  uint64_t id() const { return id_; }
  /** JS thread. Throws CANCELLED once the environment has given up its fabric. */
  std::shared_ptr<ucx::Fabric> fabric() const;
  /** Calls `ready` once there is something to take, at once if there is. Throws if another call waits. */
  void wait(std::function<void()> ready);
  /** What has come; throws the reason of the failure when there is nothing. */
  UcxArrivals take();
  /**
   * JS thread. A message that cannot be sent for another reason than the peer's end fails the port. True, of a port that reports: it
   * has left already, and take() does not tell of it.
   */
  bool send(ucx::Message message);
  /** Ends the channel for JavaScript: whoever waits is called, and take() throws the first reason. */
  void fail(Error reason);
  /** As Fabric::abandon. */
  void abandon();
  /** As fail(), and closes the fabric's channel, as Fabric::close has it. Idempotent: `done` is then called at once. */
  void close(std::chrono::milliseconds flush, std::function<void()> done);
  /** As fail(), for the end of the environment: the fabric's channel goes with the fabric. */
  void end();

 private:
  UcxPort(const std::shared_ptr<ucx::Fabric>& fabric, const UcxPortOptions& options)
      : fabric_(fabric), inbox_bytes_max_(options.inbox_bytes_max), report_sends_(options.report_sends) {}

  void arrived(ucx::Message message);
  void sent(uint64_t number);
  bool empty() const { return inbox_.messages.empty() && inbox_.sent.empty(); }

  /** The environment owns it: the fabric's thread may be the last to let go of a port, and cannot end the fabric. */
  const std::weak_ptr<ucx::Fabric> fabric_;
  const size_t inbox_bytes_max_;
  const bool report_sends_;
  uint64_t id_ = 0;
  std::mutex mutex_;
  UcxArrivals inbox_;
  /** When messages from number `reported_` on have left; none for one that is under way. */
  std::deque<std::optional<std::chrono::steady_clock::time_point>> sends_;
  uint64_t reported_ = 0;
  /** The message for which send() is being called. */
  std::optional<uint64_t> in_call_;
  size_t inbox_bytes_ = 0;
  std::optional<Error> failure_;
  std::function<void()> ready_;
  bool closed_ = false;
};

/** `UcxChannel` of native/ucx.ts. */
class UcxChannelHandle : public Handle<UcxChannelHandle, std::shared_ptr<UcxPort>> {
 public:
  static constexpr HandleKind kind = HandleKind::ucx_channel;
  static constexpr const char* name = "UcxChannel";
  static constexpr napi_type_tag tag = {0x1be46f3a90c2d785, 0xa7530d9e4c1f6b28};
  static std::vector<PropertyDescriptor> properties();

  explicit UcxChannelHandle(const Napi::CallbackInfo& info) : Handle(info), id_(native()->id()) {}
  /** A handle that is collected without having been closed closes its channel. */
  ~UcxChannelHandle() {
    if (!released()) native()->close(ucx::Fabric::flush_wait, [] {});
  }

 private:
  Napi::Value id(const Napi::CallbackInfo& info);
  Napi::Value connect(const Napi::CallbackInfo& info);
  Napi::Value send(const Napi::CallbackInfo& info);
  Napi::Value send_rows(const Napi::CallbackInfo& info);
  Napi::Value receive(const Napi::CallbackInfo& info);
  Napi::Value transports(const Napi::CallbackInfo& info);
  Napi::Value abandon(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);
  Napi::Value end(const Napi::CallbackInfo& info, const char* name,
                  const std::function<std::chrono::milliseconds()>& flush_wait);

  uint64_t id_;
};

}  // namespace switchyard::addon
