#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "addon/handle.h"
#include "ucx/fabric.h"

namespace switchyard::addon {

/** A channel of the fabric, and the messages that JavaScript has not taken yet. */
class UcxPort : public std::enable_shared_from_this<UcxPort> {
 public:
  static std::shared_ptr<UcxPort> open(const std::shared_ptr<ucx::Fabric>& fabric, const ucx::Key& key,
                                       size_t message_bytes_max, size_t inbox_bytes_max);

  uint64_t id() const { return id_; }
  /** JS thread. Throws CANCELLED once the environment has given up its fabric. */
  std::shared_ptr<ucx::Fabric> fabric() const;
  /** Calls `ready` once there is something to take, at once if there is. Throws if another call waits. */
  void wait(std::function<void()> ready);
  /** What has arrived; throws the reason of the failure when there is nothing. */
  std::vector<ucx::Message> take();
  /** Ends the channel for JavaScript: whoever waits is called, and take() throws the first reason. */
  void fail(Error reason);
  /** As fail(), and closes the fabric's channel. Idempotent. */
  void close();
  /** As fail(), for the end of the environment: the fabric's channel goes with the fabric. */
  void end();

 private:
  UcxPort(const std::shared_ptr<ucx::Fabric>& fabric, size_t inbox_bytes_max)
      : fabric_(fabric), inbox_bytes_max_(inbox_bytes_max) {}

  void arrived(ucx::Message message);

  /** The environment owns it: the fabric's thread may be the last to let go of a port, and cannot end the fabric. */
  const std::weak_ptr<ucx::Fabric> fabric_;
  const size_t inbox_bytes_max_;
  uint64_t id_ = 0;
  std::mutex mutex_;
  std::vector<ucx::Message> inbox_;
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
    if (!released()) native()->close();
  }

 private:
  Napi::Value id(const Napi::CallbackInfo& info);
  Napi::Value connect(const Napi::CallbackInfo& info);
  Napi::Value send(const Napi::CallbackInfo& info);
  Napi::Value send_rows(const Napi::CallbackInfo& info);
  Napi::Value receive(const Napi::CallbackInfo& info);
  Napi::Value transports(const Napi::CallbackInfo& info);
  Napi::Value close(const Napi::CallbackInfo& info);

  uint64_t id_;
};

}  // namespace switchyard::addon
