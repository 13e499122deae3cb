#include "addon/completion_queue.h"

#include <string>
#include <utility>

#include "addon/operation.h"
#include "runtime/error.h"

namespace switchyard::addon {

namespace {

using Shared = std::shared_ptr<CompletionQueue>;

void check(napi_status status, const char* what) {
  if (status != napi_ok) throw Error(Code::internal, std::string(what) + " failed: status " + std::to_string(status));
}

/** The thread-safe function owns one reference: a late call must find the queue. */
void drop_reference(napi_env, void* reference, void*) { delete static_cast<Shared*>(reference); }

}  // namespace

CompletionQueue::~CompletionQueue() = default;

std::shared_ptr<CompletionQueue> CompletionQueue::create(Napi::Env env) {
  Shared queue(new CompletionQueue());
  queue->env_ = env;
  auto* reference = new Shared(queue);
  check(napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "switchyard"), 1, 1, reference,
                                        drop_reference, queue.get(), call, &queue->function_),
        "napi_create_threadsafe_function");
  check(napi_unref_threadsafe_function(env, queue->function_), "napi_unref_threadsafe_function");
  return queue;
}

void CompletionQueue::begin() {
  if (closed()) throw Error(Code::cancelled, "the environment is ending");
  if (pending_ >= pending_max) {
    throw Error(Code::resource_exhausted, std::to_string(pending_) + " operations are pending; allowed: " +
                                              std::to_string(pending_max));
  }
  if (pending_++ == 0) napi_ref_threadsafe_function(env_, function_);
}

void CompletionQueue::complete(std::unique_ptr<Operation> operation) {
  {
    const std::lock_guard lock(mutex_);
    ended_.push_back(std::move(operation));
    arrived_.notify_one();
    if (scheduled_ || closed()) return;
    scheduled_ = true;
    ++calling_;
  }
  // Without the lock, which the loop takes as soon as it wakes. A full queue means that a call is on its way, and it
  // will find this operation too.
  napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
  const std::lock_guard lock(mutex_);
  --calling_;
  arrived_.notify_one();
}

void CompletionQueue::call(napi_env env, napi_value, void* context, void*) {
  if (env) static_cast<CompletionQueue*>(context)->settle_all(env);
}

void CompletionQueue::settle_all(Napi::Env env) {
  std::vector<std::unique_ptr<Operation>> ended;
  {
    const std::lock_guard lock(mutex_);
    scheduled_ = false;
    ended.swap(ended_);
  }
  for (auto& operation : ended) {
    const Napi::HandleScope scope(env);
    operation->settle(env);
    operation.reset();
  }
  pending_ -= ended.size();
  if (pending_ == 0 && !ended.empty()) napi_unref_threadsafe_function(env, function_);
}

void CompletionQueue::close() {
  std::vector<std::unique_ptr<Operation>> ended;
  {
    std::unique_lock lock(mutex_);
    closed_ = true;
    arrived_.wait(lock, [this] { return ended_.size() == pending_ && calling_ == 0; });
    ended.swap(ended_);
    pending_ = 0;
  }
  ended.clear();
  napi_release_threadsafe_function(function_, napi_tsfn_abort);
}

}  // namespace switchyard::addon
