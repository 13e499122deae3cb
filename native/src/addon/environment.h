#pragma once

#include <napi.h>

#include <array>
#include <memory>

#include "addon/completion_queue.h"

namespace switchyard::addon {

/** The classes of objects that the addon hands out. */
enum class HandleKind {
  slab,
  weight_file,
  gate_weights,
  routing_table,
  routed_rows,
  expert,
  expert_backend,
  ucx_channel,
  shared_segment,
};

/** What one JS environment (the main thread or a worker thread) has of its own. */
class Environment {
 public:
  /** Makes the environment's instance and its clean-up hook. */
  static void create(Napi::Env env);
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  const std::shared_ptr<CompletionQueue>& completions() const { return completions_; }
  /** The native value of the handle that is being made. */
  void* making = nullptr;
  Napi::FunctionReference& constructor(HandleKind kind) { return constructors_[static_cast<size_t>(kind)]; }

 private:
  std::shared_ptr<CompletionQueue> completions_;
  std::array<Napi::FunctionReference, 9> constructors_;
};

}  // namespace switchyard::addon
