#include "addon/ucx.h"

#ifdef SWITCHYARD_UCX

#include <algorithm>
#include <memory>
#include <vector>

#include "addon/process.h"
#include "addon/slab_handle.h"
#include "addon/ucx_channel.h"

namespace switchyard::addon {
namespace {

/** What an environment has of UCX: its share of the process's fabric, and the ports that must end before it. */
struct UcxEnvironment {
  std::shared_ptr<ucx::Fabric> fabric;
  std::vector<std::weak_ptr<UcxPort>> ports;

  void add(const std::shared_ptr<UcxPort>& port) {
    std::erase_if(ports, [](const auto& old) { return old.expired(); });
    ports.push_back(port);
  }
  void end() {
    for (const auto& weak : ports) {
      if (const auto port = weak.lock()) port->end();
    }
    ports.clear();
    fabric.reset();
  }
};

using Shared = std::shared_ptr<UcxEnvironment>;

/** The fabric of the process; it ends with the last environment that uses it, while UCX is still loaded. */
std::shared_ptr<ucx::Fabric> shared_fabric() {
  static std::mutex mutex;
  static std::weak_ptr<ucx::Fabric> current;
  const std::lock_guard lock(mutex);
  auto fabric = current.lock();
  if (!fabric) current = fabric = std::make_shared<ucx::Fabric>(arena());
  return fabric;
}

ucx::Fabric& fabric_of(Napi::Env env, UcxEnvironment& own, const Shared& shared) {
  if (!own.fabric) {
    own.fabric = shared_fabric();
    // Runs before the hook that waits for operations: those that receive end here.
    env.AddCleanupHook([shared] { shared->end(); });
  }
  return *own.fabric;
}

Napi::Value open_channel(const Napi::CallbackInfo& info, const Shared& shared) {
  const Fields options(info[0], "");
  const auto bytes = to_span<uint8_t>(options.value("key"), "key");
  UcxPortOptions wanted;
  if (bytes.size() != wanted.key.size()) throw_invalid("key.length", bytes.size(), std::to_string(wanted.key.size()));
  std::copy(bytes.begin(), bytes.end(), wanted.key.begin());
  wanted.message_bytes_max = options.integer("messageBytesMax", 1, safe_integer_max);
  wanted.inbox_bytes_max = options.integer("inboxBytesMax", 1, safe_integer_max);
  wanted.report_sends = options.value("reportSends").ToBoolean();
  fabric_of(info.Env(), *shared, shared);
  auto port = UcxPort::open(shared->fabric, wanted);
  shared->add(port);
  return UcxChannelHandle::create(info.Env(), std::move(port));
}

Napi::Value to_stats(Napi::Env env, const ucx::FabricStats& stats) {
  auto result = Napi::Object::New(env);
  const auto set = [&](const char* field, uint64_t value) { result.Set(field, static_cast<double>(value)); };
  set("messagesSent", stats.messages_sent);
  set("messagesReceived", stats.messages_received);
  set("bytesSent", stats.bytes_sent);
  set("bytesReceived", stats.bytes_received);
  set("bytesCopied", stats.bytes_copied);
  set("bytesTaken", stats.bytes_taken);
  set("bytesStreamed", stats.bytes_streamed);
  set("messagesRefused", stats.messages_refused);
  return result;
}

}  // namespace

void export_ucx(Napi::Env env, Napi::Object exports) {
  UcxChannelHandle::define(env);
  const Shared shared = std::make_shared<UcxEnvironment>();
  auto face = Napi::Object::New(env);
  export_function(face, "address", [shared](const Napi::CallbackInfo& info) -> Napi::Value {
    return to_array<uint8_t>(info.Env(), std::span(fabric_of(info.Env(), *shared, shared).address()));
  });
  export_function(face, "openChannel", [shared](const Napi::CallbackInfo& info) { return open_channel(info, shared); });
  export_function(face, "stats", [shared](const Napi::CallbackInfo& info) {
    // Whoever reads figures must not start UCX in a process that keeps to gRPC.
    return to_stats(info.Env(), shared->fabric ? shared->fabric->stats() : ucx::FabricStats{});
  });
  exports.Set("ucx", face);
}

}  // namespace switchyard::addon

#else

namespace switchyard::addon {

void export_ucx(Napi::Env env, Napi::Object exports) { exports.Set("ucx", env.Null()); }

}  // namespace switchyard::addon

#endif
