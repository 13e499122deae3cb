#include "addon/ucx_channel.h"

#include <cstring>

#include "addon/clock.h"
#include "addon/process.h"
#include "addon/slab_handle.h"

namespace switchyard::addon {

std::shared_ptr<UcxPort> UcxPort::open(const std::shared_ptr<ucx::Fabric>& fabric, const UcxPortOptions& options) {
  std::shared_ptr<UcxPort> port(new UcxPort(fabric, options));
  // The fabric may outlive the port; events of a port that is gone concern nobody.
  const std::weak_ptr<UcxPort> weak = port;
  ucx::ChannelEvents events;
  events.received = [weak](ucx::Message message) {
    if (const auto self = weak.lock()) self->arrived(std::move(message));
  };
  events.failed = [weak](Error error) {
    if (const auto self = weak.lock()) self->fail(std::move(error));
  };
  port->id_ = fabric->open(
      options.key, {options.message_bytes_max, options.inbox_bytes_max, options.secret}, std::move(events), options.peers);
  return port;
}

std::shared_ptr<ucx::Fabric> UcxPort::fabric() const {
  auto fabric = fabric_.lock();
  if (!fabric) throw Error(Code::cancelled, "the environment is ending");
  return fabric;
}

bool UcxPort::send(ucx::Message message) {
  const auto fabric = this->fabric();
  uint64_t number = 0;
  if (report_sends_) {
    const std::lock_guard lock(mutex_);
    number = reported_ + sends_.size();
    sends_.emplace_back();
    in_call_ = number;
  }
  fabric->send(id_, std::move(message), [weak = weak_from_this(), number](std::optional<Error> error) {
    const auto self = weak.lock();
    if (!self) return;
    if (!error) self->sent(number);
    // Of a lost link the channel's own failure tells, or the control plane where the peer has closed the channel.
    else if (error->code != Code::link_lost) self->fail(std::move(*error));
  });
  if (!report_sends_) return false;
  const std::lock_guard lock(mutex_);
  in_call_.reset();
  if (sends_.size() != 1 || !sends_.front()) return false;
  sends_.pop_back();
  return true;
}

void UcxPort::sent(uint64_t number) {
  if (!report_sends_) return;
  std::function<void()> ready;
  {
    const std::lock_guard lock(mutex_);
    sends_[number - reported_] = std::chrono::steady_clock::now();
    // send() tells, or a message before it is still under way.
    if (in_call_ == number) return;
    if (!sends_.front()) return;
    for (; !sends_.empty() && sends_.front(); ++reported_) {
      inbox_.sent.push_back(*sends_.front());
      sends_.pop_front();
    }
    ready.swap(ready_);
  }
  if (ready) ready();
}

void UcxPort::arrived(ucx::Message message) {
  std::function<void()> ready;
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    inbox_bytes_ += message.row_bytes + message.meta_bytes;
    if (inbox_bytes_ <= inbox_bytes_max_) {
      inbox_.messages.push_back(std::move(message));
    } else {
      failure_ = Error(Code::resource_exhausted, std::to_string(inbox_bytes_) + " bytes have arrived; allowed: " +
                                                     std::to_string(inbox_bytes_max_));
    }
    ready.swap(ready_);
  }
  if (ready) ready();
}

void UcxPort::wait(std::function<void()> ready) {
  {
    const std::lock_guard lock(mutex_);
    if (ready_) throw_invalid("receive", "called again", "one call at a time");
    if (empty() && !failure_) {
      ready_ = std::move(ready);
      return;
    }
  }
  ready();
}

UcxArrivals UcxPort::take() {
  const std::lock_guard lock(mutex_);
  if (empty() && failure_) throw *failure_;
  inbox_bytes_ = 0;
  return std::exchange(inbox_, {});
}

void UcxPort::fail(Error reason) {
  std::function<void()> ready;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(reason);
    ready.swap(ready_);
  }
  if (ready) ready();
}

void UcxPort::abandon() {
  if (const auto fabric = fabric_.lock()) fabric->abandon(id_);
}

void UcxPort::close(std::chrono::milliseconds flush, std::function<void()> done) {
  const bool first = [this] {
    const std::lock_guard lock(mutex_);
    return !std::exchange(closed_, true);
  }();
  if (first) fail(Error(Code::cancelled, "the UCX channel was closed"));
  const auto fabric = first ? fabric_.lock() : nullptr;
  if (!fabric) return done();
  try {
    fabric->close(id_, done, flush);
  } catch (const Error&) {
    done();  // The fabric is ending.
  }
}

void UcxPort::end() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  fail(Error(Code::cancelled, "the environment is ending"));
}

std::vector<UcxChannelHandle::PropertyDescriptor> UcxChannelHandle::properties() {
  return {
      InstanceAccessor<&UcxChannelHandle::id>("id"),
      InstanceMethod<&UcxChannelHandle::connect>("connect"),
      InstanceMethod<&UcxChannelHandle::send>("send"),
      InstanceMethod<&UcxChannelHandle::send_rows>("sendRows"),
      InstanceMethod<&UcxChannelHandle::receive>("receive"),
      InstanceMethod<&UcxChannelHandle::transports>("transports"),
      InstanceMethod<&UcxChannelHandle::abandon>("abandon"),
      InstanceMethod<&UcxChannelHandle::close>("close"),
  };
}

namespace {

constexpr int64_t flush_ms_max = 3'600'000;
using Task = std::function<void()>;
using Failure = std::optional<Error>;

Napi::Value to_message(Napi::Env env, ucx::Message& message) {
  auto result = Napi::Array::New(env, 5);
  const auto* metadata = reinterpret_cast<const uint8_t*>(message.slab->data()) + message.row_bytes;
  result.Set(1u, static_cast<double>(message.row_bytes));
  result.Set(2u, Napi::Buffer<uint8_t>::Copy(env, metadata, message.meta_bytes));
  result.Set(3u, to_microseconds(message.announced));
  result.Set(4u, to_microseconds(message.arrived));
  result.Set(0u, SlabHandle::create(env, std::move(message.slab)));
  return result;
}

}  // namespace

Napi::Value UcxChannelHandle::id(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(id_));
}

Napi::Value UcxChannelHandle::connect(const Napi::CallbackInfo& info) {
  return Operation::start(info, "connect", [this](const Napi::CallbackInfo& info, Operation& operation) {
    const auto address = to_span<uint8_t>(info[0], "peerAddress");
    if (address.empty()) throw_invalid("peerAddress", "empty", "a UCX worker address");
    const uint64_t peer = to_integer(info[1], "peerId", 1, safe_integer_max);
    const auto failure = std::make_shared<Failure>();
    operation.executor = [port = native(), peer, bytes = std::vector<uint8_t>(address.begin(), address.end()),
                          failure](Task task) {
      const auto done = [failure, task](Failure error) {
        *failure = std::move(error);
        task();
      };
      try {
        port->fabric()->connect(port->id(), bytes, peer, done);
      } catch (const Error& error) {
        done(error);
      }
    };
    operation.run = [failure] {
      if (*failure) throw **failure;
    };
    operation.result = [](Napi::Env env) { return env.Undefined(); };
  });
}

Napi::Value UcxChannelHandle::send(const Napi::CallbackInfo& info) {
  return guard(info, "send", [&] {
    const SlabRef slab = SlabHandle::of(info[0], "slab");
    const uint64_t row_bytes = to_integer(info[1], "rowBytes", 0, slab->size());
    const auto metadata = to_span<uint8_t>(info[2], "metadata");
    if (metadata.empty() || metadata.size() > slab->capacity() - row_bytes) {
      throw_invalid("metadata.byteLength", metadata.size(),
                    "1 to " + std::to_string(slab->capacity() - row_bytes) + ", the capacity behind the rows");
    }
    std::memcpy(slab->data() + row_bytes, metadata.data(), metadata.size());
    return Napi::Boolean::New(info.Env(), native()->send({slab, row_bytes, metadata.size()}));
  });
}

Napi::Value UcxChannelHandle::send_rows(const Napi::CallbackInfo& info) {
  return guard(info, "sendRows", [&] {
    const SlabRef slab = SlabHandle::of(info[0], "slab");
    const uint64_t row_bytes = to_integer(info[1], "rowBytes", 1, slab->size());
    const auto indices = to_span<uint32_t>(info[2], "indices");
    const auto metadata = to_span<uint8_t>(info[3], "metadata");
    if (indices.empty()) throw_invalid("indices.length", 0, "1 or more");
    if (metadata.empty()) throw_invalid("metadata.byteLength", 0, "1 or more");
    return Napi::Boolean::New(info.Env(), native()->send(ucx::select_rows(arena(), slab, row_bytes, indices, metadata)));
  });
}

Napi::Value UcxChannelHandle::receive(const Napi::CallbackInfo& info) {
  return Operation::start(info, "receive", [this](const Napi::CallbackInfo&, Operation& operation) {
    // Who waits for a peer has a stream to it beside, or serves.
    operation.keeps_process = false;
    const auto arrivals = std::make_shared<UcxArrivals>();
    const std::shared_ptr<UcxPort> port = native();
    const auto refused = std::make_shared<Failure>();
    operation.executor = [port, refused](Task task) {
      try {
        port->wait(task);
      } catch (const Error& error) {
        *refused = error;
        task();
      }
    };
    operation.run = [port, refused, arrivals] {
      if (*refused) throw **refused;
      *arrivals = port->take();
    };
    operation.result = [arrivals](Napi::Env env) {
      auto [messages, sent] = std::move(*arrivals);
      auto result = Napi::Object::New(env);
      auto list = Napi::Array::New(env, messages.size());
      for (uint32_t i = 0; i < messages.size(); ++i) list.Set(i, to_message(env, messages[i]));
      auto times = Napi::Array::New(env, sent.size());
      for (uint32_t i = 0; i < sent.size(); ++i) times.Set(i, to_microseconds(sent[i]));
      result.Set("messages", list);
      result.Set("sentMicroseconds", times);
      return result;
    };
  });
}

Napi::Value UcxChannelHandle::transports(const Napi::CallbackInfo& info) {
  return Operation::start(info, "transports", [this](const Napi::CallbackInfo&, Operation& operation) {
    const auto text = std::make_shared<std::string>();
    operation.run = [port = native(), text] { *text = port->fabric()->transports(port->id()); };
    operation.result = [text](Napi::Env env) { return Napi::String::New(env, *text); };
  });
}

Napi::Value UcxChannelHandle::close(const Napi::CallbackInfo& info) {
  using std::chrono::milliseconds;
  return end(info, "close", [&] {
    if (info[0].IsUndefined()) return ucx::Fabric::flush_wait;
    return milliseconds(to_integer(info[0], "flushMs", 0, flush_ms_max));
  });
}

Napi::Value UcxChannelHandle::abandon(const Napi::CallbackInfo& info) {
  return end(info, "abandon", [&] {
    if (!released()) native()->abandon();
    return std::chrono::milliseconds(0);
  });
}

Napi::Value UcxChannelHandle::end(const Napi::CallbackInfo& info, const char* name,
                                  const std::function<std::chrono::milliseconds()>& flush_wait) {
  return Operation::start(info, name, [&](const Napi::CallbackInfo& info, Operation& operation) {
    const std::chrono::milliseconds flush = flush_wait();
    operation.run = [] {};
    operation.result = [](Napi::Env env) { return env.Undefined(); };
    // Its fabric ends with the process.
    operation.keeps_process = false;
    if (released()) return;
    operation.executor = [port = native(), flush](Task task) { port->close(flush, task); };
    release(info);
  });
}

}  // namespace switchyard::addon
