#include "addon/ucx.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "addon/module_path.h"
#include "addon/process.h"
#include "addon/slab_handle.h"
#include "addon/ucx_channel.h"
#include "addon/ucx_loop.h"
#include "runtime/module_file.h"
#include "runtime/temporary_variables.h"
#include "ucx/module.h"

namespace switchyard::addon {
namespace {

using ucx::Peers;
using ucx::Reach;

std::string file_path() { return module_path("switchyard_ucx.so"); }

/** What UCX reads as it is loaded. */
constexpr Variable load_variables[] = {
    // UCX hooks the calls that map memory, and tries the hooks by growing the heap by a page and shrinking it again, whether it
    // grew or not. Where it cannot grow, because V8 mapped something behind it, that takes a page in use, and the process
    // crashes later. Nothing here needs such hooks.
    {"UCX_MEM_EVENTS", "n"},
    // UCX's own handler of fatal signals allocates memory: a process that crashed could hang in it instead of ending.
    {"UCX_HANDLE_ERRORS", "none"},
    // UCX waits for a debugger at SIGHUP: a closed terminal would not end the process any more.
    {"UCX_DEBUG_SIGNO", "0"},
    // Standard output is the program's, for JSON lines and reports.
    {"UCX_LOG_FILE", "stderr"},
    // Options of transports that are not used here are no mistake of the user's.
    {"UCX_WARN_UNUSED_ENV_VARS", "n"},
};

const ModuleFile& module_file() {
  static const ModuleFile file = [] {
    const TemporaryVariables options(load_variables);
    return ModuleFile(file_path(), "switchyard_ucx");
  }();
  return file;
}

const ucx::Module& ucx_module() {
  const ModuleFile& file = module_file();
  const auto* const module = file.module<ucx::Module>();
  if (!module) throw Error(Code::link_lost, "UCX cannot be loaded: " + file.problem());
  return *module;
}

/** The fabric of the process for each reach; it ends with the last environment that uses it. */
std::shared_ptr<ucx::Fabric> shared_fabric(Reach reach) {
  static std::mutex mutex;
  static std::array<std::weak_ptr<ucx::Fabric>, ucx::reaches> all;
  const std::lock_guard lock(mutex);
  auto& current = all[static_cast<size_t>(reach)];
  auto fabric = current.lock();
  if (!fabric) current = fabric = ucx_module().open(arena(), reach);
  return fabric;
}

/** What an environment has of UCX: its share of the process's fabrics, and the ports that must end before them. */
class UcxEnvironment : public std::enable_shared_from_this<UcxEnvironment> {
 public:
  const std::shared_ptr<ucx::Fabric>& fabric(Napi::Env env, Reach reach) {
    auto& fabric = fabrics_[static_cast<size_t>(reach)];
    if (fabric) return fabric;
    fabric = shared_fabric(reach);
    // Runs before the hook that waits for operations: those that receive end here.
    if (!std::exchange(hooked_, true)) env.AddCleanupHook([self = shared_from_this()] { self->end(); });
    drive_by_loop(env, fabric);
    return fabric;
  }
  void add(const std::shared_ptr<UcxPort>& port) {
    std::erase_if(ports_, [](const auto& old) { return old.expired(); });
    ports_.push_back(port);
  }
  /** Of all fabrics that are in use. */
  ucx::FabricStats stats() const {
    ucx::FabricStats sum;
    for (const auto& fabric : fabrics_) {
      if (fabric) sum += fabric->stats();
    }
    return sum;
  }

 private:
  void end() {
    for (const auto& weak : ports_) {
      if (const auto port = weak.lock()) port->end();
    }
    ports_.clear();
    fabrics_ = {};
  }

  std::array<std::shared_ptr<ucx::Fabric>, ucx::reaches> fabrics_;
  std::vector<std::weak_ptr<UcxPort>> ports_;
  bool hooked_ = false;
};

using Shared = std::shared_ptr<UcxEnvironment>;

Reach to_reach(const Napi::Value& value) {
  const std::string text = to_text(value, "reach");
  if (text == "machine") return Reach::machine;
  if (text == "network") return Reach::network;
  if (text == "encrypted") return Reach::encrypted;
  if (text == "network-apart") return Reach::network_apart;
  if (text == "encrypted-apart") return Reach::encrypted_apart;
  throw_invalid("reach", text, "machine, network, encrypted, network-apart, encrypted-apart");
}

/** Of a fixed length. */
template <typename Bytes>
Bytes to_bytes(const Napi::Value& value, const std::string& name) {
  const auto given = to_span<uint8_t>(value, name);
  Bytes bytes;
  if (given.size() != bytes.size()) throw_invalid(name + ".length", given.size(), std::to_string(bytes.size()));
  std::copy(given.begin(), given.end(), bytes.begin());
  return bytes;
}

Peers to_peers(const Napi::Value& value) {
  if (value.IsUndefined()) return Peers::nodes;
  const std::string text = to_text(value, "peers");
  if (text == "nodes") return Peers::nodes;
  if (text == "clients") return Peers::clients;
  throw_invalid("peers", text, "nodes, clients");
}

Napi::Value open_channel(const Napi::CallbackInfo& info, const Shared& shared, Reach reach, Peers peers) {
  const Fields options(info[0], "");
  UcxPortOptions wanted;
  wanted.key = to_bytes<ucx::Key>(options.value("key"), "key");
  const Napi::Value secret = options.value("secret");
  if (!secret.IsUndefined()) wanted.secret = to_bytes<ucx::Secret>(secret, "secret");
  wanted.message_bytes_max = options.integer("messageBytesMax", 1, safe_integer_max);
  wanted.inbox_bytes_max = options.integer("inboxBytesMax", 1, safe_integer_max);
  wanted.peers = peers;
  wanted.report_sends = options.value("reportSends").ToBoolean();
  auto port = UcxPort::open(shared->fabric(info.Env(), reach), wanted);
  shared->add(port);
  return UcxChannelHandle::create(info.Env(), std::move(port));
}

Napi::Value to_fabric(Napi::Env env, const Shared& shared, Reach reach, Peers peers) {
  auto face = Napi::Object::New(env);
  export_function(face, "address", [shared, reach, peers](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::vector<uint8_t> address = shared->fabric(info.Env(), reach)->address(peers);
    return to_array<uint8_t>(info.Env(), std::span(address));
  });
  export_function(face, "openChannel",
                  [shared, reach, peers](const Napi::CallbackInfo& info) { return open_channel(info, shared, reach, peers); });
  return face;
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
  set("workersReplaced", stats.workers_replaced);
  set("lookedNanoseconds", stats.looked_ns);
  return result;
}

}  // namespace

void export_ucx(Napi::Env env, Napi::Object exports) {
  UcxChannelHandle::define(env);
  if (!std::filesystem::exists(file_path())) {
    exports.Set("ucx", env.Null());
    return;
  }
  const Shared shared = std::make_shared<UcxEnvironment>();
  auto face = Napi::Object::New(env);
  export_function(face, "fabric", [shared](const Napi::CallbackInfo& info) {
    return to_fabric(info.Env(), shared, to_reach(info[0]), to_peers(info[1]));
  });
  export_function(face, "stats",
                  [shared](const Napi::CallbackInfo& info) { return to_stats(info.Env(), shared->stats()); });
  exports.Set("ucx", face);
}

Napi::Value describe_ucx(Napi::Env env) {
  if (!std::filesystem::exists(file_path())) return env.Null();
  const ModuleFile& file = module_file();
  const auto* const module = file.module<ucx::Module>();
  auto result = Napi::Object::New(env);
  result.Set("version", module ? Napi::String::New(env, module->version()).As<Napi::Value>() : env.Null());
  result.Set("encrypts", Napi::Boolean::New(env, module && module->can_encrypt()));
  result.Set("problem", module ? env.Null() : Napi::String::New(env, file.problem()).As<Napi::Value>());
  return result;
}

}  // namespace switchyard::addon
