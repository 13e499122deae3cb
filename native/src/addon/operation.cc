#include "addon/operation.h"

#include <new>
#include <utility>

#include "addon/environment.h"
#include "addon/process.h"

namespace switchyard::addon {

namespace {

Napi::Error make_error(Napi::Env env, const char* operation, Code code, const char* message) {
  Napi::Error error = Napi::Error::New(env, message);
  error.Set("code", Napi::String::New(env, to_string(code)));
  error.Set("operation", Napi::String::New(env, operation));
  return error;
}

}  // namespace

Napi::Error to_js_error(Napi::Env env, const char* operation, std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Napi::Error& error) {
    return error;
  } catch (const Error& error) {
    return make_error(env, operation, error.code, error.what());
  } catch (const std::bad_alloc&) {
    return make_error(env, operation, Code::resource_exhausted, "the process is out of memory");
  } catch (const std::exception& error) {
    return make_error(env, operation, Code::internal, error.what());
  }
}

Operation::Operation(Napi::Env env, const char* name)
    : name_(name), deferred_(Napi::Promise::Deferred::New(env)), completions_(Environment::of(env).completions()) {}

Napi::Value Operation::start(const Napi::CallbackInfo& info, const char* name, const Prepare& prepare) {
  std::unique_ptr<Operation> operation(new Operation(info.Env(), name));
  const Napi::Promise promise = operation->deferred_.Promise();
  try {
    prepare(info, *operation);
    if (operation->brief && operation->completions_->may_settle_now(operation->share)) {
      operation->perform();
      operation->settle(info.Env());
      return promise;
    }
    for (const napi_value value : std::exchange(operation->to_hold_, {})) {
      operation->held_.push_back(Napi::Reference<Napi::Value>::New(Napi::Value(info.Env(), value), 1));
    }
    operation->completions_->begin(operation->keeps_process);
  } catch (...) {
    operation->deferred_.Reject(to_js_error(info.Env(), name, std::current_exception()).Value());
    return promise;
  }
  launch(std::move(operation));
  return promise;
}

void Operation::launch(std::unique_ptr<Operation> operation) {
  // A raw pointer, because a task must be copyable and the operation has one owner at a time.
  Operation* raw = operation.release();
  const auto executor = std::move(raw->executor);
  const bool brief = raw->brief;
  const auto task = [raw] { raw->execute(); };
  if (brief) task();
  else if (executor) executor(task);
  else pool().submit(task);
}

void Operation::perform() noexcept {
  try {
    if (!completions_->closed()) run();
  } catch (...) {
    error_ = std::current_exception();
  }
}

void Operation::execute() noexcept {
  perform();
  // The queue may be settled and gone as soon as it has the operation.
  const auto completions = completions_;
  completions->complete(std::unique_ptr<Operation>(this));
}

void Operation::settle(Napi::Env env) noexcept {
  try {
    try {
      if (error_) std::rethrow_exception(error_);
      deferred_.Resolve(result(env));
    } catch (...) {
      deferred_.Reject(to_js_error(env, name_, std::current_exception()).Value());
    }
  } catch (const Napi::Error&) {
    // The environment is being terminated and runs no more JavaScript: nobody awaits the promise.
  }
}

Napi::Value guard(const Napi::CallbackInfo& info, const char* name, const std::function<Napi::Value()>& body) {
  try {
    return body();
  } catch (...) {
    throw to_js_error(info.Env(), name, std::current_exception());
  }
}

void export_function(Napi::Object exports, const char* name,
                     std::function<Napi::Value(const Napi::CallbackInfo&)> body) {
  const auto call = [name, body = std::move(body)](const Napi::CallbackInfo& info) {
    return guard(info, name, [&] { return body(info); });
  };
  exports.Set(name, Napi::Function::New(exports.Env(), call, name));
}

void export_operation(Napi::Object exports, const char* name, Operation::Prepare prepare) {
  const auto call = [name, prepare = std::move(prepare)](const Napi::CallbackInfo& info) {
    return Operation::start(info, name, prepare);
  };
  exports.Set(name, Napi::Function::New(exports.Env(), call, name));
}

}  // namespace switchyard::addon
