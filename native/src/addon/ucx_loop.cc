#include "addon/ucx_loop.h"

#include <uv.h>

#include "addon/environment.h"

namespace switchyard::addon {
namespace {

/** Turns of the fabric in one of the loop's: what else the loop has to do does not wait for a stream of messages to end. */
constexpr int turns_max = 8;

/** What it has of the loop keeps it until that has closed them. */
class Driver {
 public:
  Driver(std::shared_ptr<ucx::Fabric> fabric, std::shared_ptr<CompletionQueue> completions)
      : fabric_(std::move(fabric)), completions_(std::move(completions)) {}

  /** False: the loop does not take it. Otherwise it ends with the environment, by itself. */
  bool start(Napi::Env env, int descriptor) {
    uv_loop_t* loop = nullptr;
    const auto end = [](napi_async_cleanup_hook_handle, void* self) { static_cast<Driver*>(self)->end(); };
    if (napi_get_uv_event_loop(env, &loop) != napi_ok || napi_add_async_cleanup_hook(env, end, this, &hook_) != napi_ok) return false;
    if (uv_poll_init(loop, &events_, descriptor) != 0) {
      napi_remove_async_cleanup_hook(hook_);
      return false;
    }
    uv_idle_init(loop, &again_);
    events_.data = again_.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&events_));
    uv_unref(reinterpret_cast<uv_handle_t*>(&again_));
    const auto drive = [](uv_poll_t* handle, int, int) { static_cast<Driver*>(handle->data)->drive(); };
    if (uv_poll_start(&events_, UV_READABLE, drive) != 0) fabric_->detach_loop();
    return true;
  }

 private:
  void drive() {
    bool more = true;
    for (int turn = 0; more && turn < turns_max; ++turn) {
      completions_->settle_with([&] { more = fabric_->drive(); });
    }
    if (!more) uv_idle_stop(&again_);
    else uv_idle_start(&again_, [](uv_idle_t* handle) { static_cast<Driver*>(handle->data)->drive(); });
  }

  /** Before the environment gives up its fabric, which ends then and not later: operations wait for that. */
  void end() {
    uv_poll_stop(&events_);
    uv_idle_stop(&again_);
    fabric_->detach_loop();
    fabric_.reset();
    uv_close(reinterpret_cast<uv_handle_t*>(&events_), [](uv_handle_t* events) {
      auto& self = *static_cast<Driver*>(events->data);
      uv_close(reinterpret_cast<uv_handle_t*>(&self.again_), [](uv_handle_t* again) {
        const std::unique_ptr<Driver> self(static_cast<Driver*>(again->data));
        napi_remove_async_cleanup_hook(self->hook_);
      });
    });
  }

  std::shared_ptr<ucx::Fabric> fabric_;
  const std::shared_ptr<CompletionQueue> completions_;
  uv_poll_t events_{};
  uv_idle_t again_{};
  napi_async_cleanup_hook_handle hook_ = nullptr;
};

}  // namespace

void drive_by_loop(Napi::Env env, const std::shared_ptr<ucx::Fabric>& fabric) {
  const std::optional<int> descriptor = fabric->attach_loop();
  if (!descriptor) return;
  auto driver = std::make_unique<Driver>(fabric, Environment::of(env).completions());
  if (driver->start(env, *descriptor)) driver.release();
  else fabric->detach_loop();
}

}  // namespace switchyard::addon
