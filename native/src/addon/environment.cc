#include "addon/environment.h"

namespace switchyard::addon {

void Environment::create(Napi::Env env) {
  auto* environment = new Environment();
  env.SetInstanceData<Environment>(environment);
  environment->completions_ = CompletionQueue::create(env);
}

}  // namespace switchyard::addon
