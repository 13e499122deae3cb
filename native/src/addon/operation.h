#pragma once

#include <napi.h>

#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "addon/completion_queue.h"
#include "runtime/error.h"

namespace switchyard::addon {

/** A JS error with `code` and `operation`. */
Napi::Error to_js_error(Napi::Env env, const char* operation, std::exception_ptr thrown);

/**
 * One asynchronous call: what it holds, what it runs and the promise it settles. Made and destroyed on the JS thread;
 * in between a thread of the addon owns it.
 */
class Operation {
 public:
  using Prepare = std::function<void(const Napi::CallbackInfo&, Operation&)>;

  /**
   * JS thread. Calls `prepare`, which reads the arguments and sets `run` and `result`, and starts the operation.
   * Returns its promise; what `prepare` throws rejects it.
   */
  static Napi::Value start(const Napi::CallbackInfo& info, const char* name, const Prepare& prepare);

  /** Runs on a thread of the addon; owns a reference to every slab it touches. What it throws rejects the promise. */
  std::function<void()> run;
  /** Makes the promise's value, on the JS thread. */
  std::function<Napi::Value(Napi::Env)> result;
  /** Hands a task to the thread that shall run it; by default the pool for row operations. */
  std::function<void(std::function<void()>)> executor;
  /**
   * It takes less time than to hand it over: it runs at once, on the JS thread, and its promise is settled when the call returns, as
   * far as CompletionQueue::may_settle_now allows.
   */
  bool brief = false;
  /** Of what may settle so in a turn of the event loop. */
  int share = 1;
  /** Whether the process stays for it, if nothing else keeps it. */
  bool keeps_process = true;

  /** `prepare`: keeps a JS value from collection until the operation ends. */
  void hold(const Napi::Value& value) { to_hold_.push_back(value); }
  /** JS thread, after the operation has ended. */
  void settle(Napi::Env env) noexcept;

 private:
  Operation(Napi::Env env, const char* name);

  static void launch(std::unique_ptr<Operation> operation);
  void perform() noexcept;
  /** perform(), and hands itself to the completions. */
  void execute() noexcept;

  const char* name_;
  Napi::Promise::Deferred deferred_;
  std::shared_ptr<CompletionQueue> completions_;
  /** Of the call: one that is over with it needs no references. */
  std::vector<napi_value> to_hold_;
  std::vector<Napi::Reference<Napi::Value>> held_;
  std::exception_ptr error_;
};

/** Whether an operation that reads or writes so many elements of rows is brief: it takes a few microseconds. */
constexpr bool is_brief(uint64_t elements) { return elements <= 32 * 1024; }

/** Calls `body` for a call that returns no promise: every error leaves with its code and `name`. */
Napi::Value guard(const Napi::CallbackInfo& info, const char* name, const std::function<Napi::Value()>& body);

/** Adds a function that returns a value or throws. */
void export_function(Napi::Object exports, const char* name,
                     std::function<Napi::Value(const Napi::CallbackInfo&)> body);

/** Adds a function that returns a promise. */
void export_operation(Napi::Object exports, const char* name, Operation::Prepare prepare);

}  // namespace switchyard::addon
