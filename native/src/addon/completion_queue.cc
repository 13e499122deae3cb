#include "addon/completion_queue.h"

#include <string>
#include <utility>

#include "addon/operation.h"
#include "runtime/error.h"

namespace switchyard::addon {

namespace {

/** Few enough to take less than a millisecond. */
constexpr int settling_now_max = 32;

void check(int status, const char* what) {
  if (status != 0) throw Error(Code::internal, std::string(what) + " failed: status " + std::to_string(status));
}

/** What ends on this thread now is settled without a word to the loop. */
thread_local const CompletionQueue* settling = nullptr;

CompletionQueue& queue_of(void* data) { return *static_cast<CompletionQueue*>(data); }

}  // namespace

CompletionQueue::CompletionQueue(Napi::Env env) : env_(env), context_(std::in_place, env, "switchyard"), settling_now_(settling_now_max) {}

CompletionQueue::~CompletionQueue() = default;

std::shared_ptr<CompletionQueue> CompletionQueue::create(Napi::Env env) {
  std::shared_ptr<CompletionQueue> queue(new CompletionQueue(env));
  uv_loop_t* loop = nullptr;
  check(napi_get_uv_event_loop(env, &loop), "napi_get_uv_event_loop");
  uv_async_t& event = queue->ended_event_;
  check(uv_async_init(loop, &event, [](uv_async_t* handle) { queue_of(handle->data).settle_all(); }), "uv_async_init");
  event.data = queue.get();
  uv_unref(reinterpret_cast<uv_handle_t*>(&event));
  queue->self_ = queue;
  const auto end = [](napi_async_cleanup_hook_handle hook, void* data) { queue_of(data).close(hook); };
  check(napi_add_async_cleanup_hook(env, end, queue.get(), nullptr), "napi_add_async_cleanup_hook");
  return queue;
}

bool CompletionQueue::may_settle_now(int share) {
  if (settling_now_ < share) return false;
  settling_now_ -= share;
  return true;
}

void CompletionQueue::begin(bool keeps_process) {
  if (closed()) throw Error(Code::cancelled, "the environment is ending");
  ++pending_;
  if (keeps_process && keeping_++ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&ended_event_));
}

void CompletionQueue::complete(std::unique_ptr<Operation> operation) {
  ++signalling_;
  {
    const std::lock_guard lock(mutex_);
    ended_.push_back(std::move(operation));
    arrived_.notify_one();
  }
  // Without the lock, which the loop takes as soon as it wakes.
  if (settling != this) uv_async_send(&ended_event_);
  if (--signalling_ == 0) signalling_.notify_one();
}

void CompletionQueue::settle_with(const std::function<void()>& work) {
  settling = this;
  work();
  settling = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) return;
  }
  settle_all();
}

void CompletionQueue::settle_all() {
  const Napi::HandleScope handles(env_);
  // Its end runs what waits for the promises.
  const Napi::CallbackScope callback(env_, *context_);
  std::vector<std::unique_ptr<Operation>> ended;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(ended_);
  }
  settling_now_ = settling_now_max;
  for (auto& operation : ended) {
    const Napi::HandleScope scope(env_);
    if (operation->keeps_process) --keeping_;
    operation->settle(env_);
    operation.reset();
  }
  pending_ -= ended.size();
  if (keeping_ == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&ended_event_));
}

void CompletionQueue::close(napi_async_cleanup_hook_handle hook) {
  hook_ = hook;
  closed_ = true;
  std::vector<std::unique_ptr<Operation>> ended;
  {
    std::unique_lock lock(mutex_);
    arrived_.wait(lock, [this] { return ended_.size() == pending_; });
    ended.swap(ended_);
    pending_ = 0;
  }
  ended.clear();
  while (const size_t threads = signalling_) signalling_.wait(threads);
  context_.reset();
  uv_close(reinterpret_cast<uv_handle_t*>(&ended_event_), [](uv_handle_t* handle) {
    const auto queue = std::move(queue_of(handle->data).self_);
    napi_remove_async_cleanup_hook(queue->hook_);
  });
}

}  // namespace switchyard::addon
