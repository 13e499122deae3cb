#include "addon/ucx_channel.h"

#include <cstring>

#include "addon/clock.h"
#include "addon/process.h"
#include "addon/slab_handle.h"

namespace switchyard::addon {

std::shared_ptr<UcxPort> UcxPort::open(const std::shared_ptr<ucx::Fabric>& fabric, const ucx::Key& key,
                                       size_t message_bytes_max, size_t inbox_bytes_max) {
  std::shared_ptr<UcxPort> port(new UcxPort(fabric, inbox_bytes_max));
  // The fabric may outlive the port; events of a port that is gone concern nobody.
  const std::weak_ptr<UcxPort> weak = port;
  ucx::ChannelEvents events;
  events.received = [weak](ucx::Message message) {
    if (const auto self = weak.lock()) self->arrived(std::move(message));
  };
  events.failed = [weak](Error error) {
    if (const auto self = weak.lock()) self->fail(std::move(error));
  };
  port->id_ = fabric->open(key, {message_bytes_max}, std::move(events));
  return port;
}

std::shared_ptr<ucx::Fabric> UcxPort::fabric() const {
  auto fabric = fabric_.lock();
  if (!fabric) throw Error(Code::cancelled, "the environment is ending");
  return fabric;
}

void UcxPort::arrived(ucx::Message message) {
  std::function<void()> ready;
  {
    const std::lock_guard lock(mutex_);
    if (failure_) return;
    inbox_bytes_ += message.row_bytes + message.meta_bytes;
    if (inbox_bytes_ <= inbox_bytes_max_) {
      inbox_.push_back(std::move(message));
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
    if (inbox_.empty() && !failure_) {
      ready_ = std::move(ready);
      return;
    }
  }
  ready();
}

std::vector<ucx::Message> UcxPort::take() {
  const std::lock_guard lock(mutex_);
  if (inbox_.empty() && failure_) throw *failure_;
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

void UcxPort::close() {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(closed_, true)) return;
  }
  fail(Error(Code::cancelled, "the UCX channel was closed"));
  if (const auto fabric = fabric_.lock()) fabric->close(id_, [] {});
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
      InstanceMethod<&UcxChannelHandle::close>("close"),
  };
}

namespace {

using Task = std::function<void()>;
using Failure = std::optional<Error>;

/** Starts `begin` instead of running on a pool; the operation ends when the callback given to it is called. */
template <typename Begin>
void run_when_done(Operation& operation, Begin begin) {
  const auto failure = std::make_shared<Failure>();
  operation.executor = [failure, begin](Task task) {
    const auto done = [failure, task](Failure error) {
      *failure = std::move(error);
      task();
    };
    try {
      begin(done);
    } catch (const Error& error) {
      done(error);
    }
  };
  operation.run = [failure] {
    if (*failure) throw **failure;
  };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

Napi::Value to_message(Napi::Env env, ucx::Message& message) {
  auto result = Napi::Object::New(env);
  const auto* metadata = reinterpret_cast<const uint8_t*>(message.slab->data()) + message.row_bytes;
  result.Set("metadata", to_array<uint8_t>(env, std::span(metadata, message.meta_bytes)));
  result.Set("rowBytes", static_cast<double>(message.row_bytes));
  result.Set("announcedMicroseconds", to_microseconds(message.announced));
  result.Set("arrivedMicroseconds", to_microseconds(message.arrived));
  result.Set("slab", SlabHandle::create(env, std::move(message.slab)));
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
    run_when_done(operation, [port = native(), peer, bytes = std::vector<uint8_t>(address.begin(), address.end())](
                                 auto done) { port->fabric()->connect(port->id(), bytes, peer, done); });
  });
}

Napi::Value UcxChannelHandle::send(const Napi::CallbackInfo& info) {
  return Operation::start(info, "send", [this](const Napi::CallbackInfo& info, Operation& operation) {
    const SlabRef slab = SlabHandle::of(info[0], "slab");
    const uint64_t row_bytes = to_integer(info[1], "rowBytes", 0, slab->size());
    const auto metadata = to_span<uint8_t>(info[2], "metadata");
    if (metadata.empty() || metadata.size() > slab->capacity() - row_bytes) {
      throw_invalid("metadata.byteLength", metadata.size(),
                    "1 to " + std::to_string(slab->capacity() - row_bytes) + ", the capacity behind the rows");
    }
    std::memcpy(slab->data() + row_bytes, metadata.data(), metadata.size());
    const ucx::Message message{slab, row_bytes, metadata.size()};
    run_when_done(operation,
                  [port = native(), message](auto done) { port->fabric()->send(port->id(), message, done); });
  });
}

Napi::Value UcxChannelHandle::send_rows(const Napi::CallbackInfo& info) {
  return Operation::start(info, "sendRows", [this](const Napi::CallbackInfo& info, Operation& operation) {
    const SlabRef slab = SlabHandle::of(info[0], "slab");
    const uint64_t row_bytes = to_integer(info[1], "rowBytes", 1, slab->size());
    const auto indices = to_span<uint32_t>(info[2], "indices");
    const auto metadata = to_span<uint8_t>(info[3], "metadata");
    if (indices.empty()) throw_invalid("indices.length", 0, "1 or more");
    if (metadata.empty()) throw_invalid("metadata.byteLength", 0, "1 or more");
    const ucx::Message message = ucx::select_rows(arena(), slab, row_bytes, indices, metadata);
    run_when_done(operation,
                  [port = native(), message](auto done) { port->fabric()->send(port->id(), message, done); });
  });
}

Napi::Value UcxChannelHandle::receive(const Napi::CallbackInfo& info) {
  return Operation::start(info, "receive", [this](const Napi::CallbackInfo&, Operation& operation) {
    const auto messages = std::make_shared<std::vector<ucx::Message>>();
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
    operation.run = [port, refused, messages] {
      if (*refused) throw **refused;
      *messages = port->take();
    };
    operation.result = [messages](Napi::Env env) {
      auto result = Napi::Array::New(env, messages->size());
      for (uint32_t i = 0; i < messages->size(); ++i) result.Set(i, to_message(env, (*messages)[i]));
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
  if (!released()) native()->close();
  return release(info);
}

}  // namespace switchyard::addon
