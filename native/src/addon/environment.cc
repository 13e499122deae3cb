#include "addon/environment.h"

namespace switchyard::addon {

void Environment::create(Napi::Env env) {
  auto* environment = new Environment();
  env.SetInstanceData<Environment>(environment);
  environment->completions_ = CompletionQueue::create(env);
  // Hooks run in reverse order: this one comes before the function and the instance are taken down.
  env.AddCleanupHook([completions = environment->completions_] { completions->close(); });
}

}  // namespace switchyard::addon
