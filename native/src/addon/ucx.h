#pragma once

#include <napi.h>

namespace switchyard::addon {

/** The member `ucx`: null when UCX is not built in. UCX itself is loaded when it is first used. */
void export_ucx(Napi::Env env, Napi::Object exports);

/** `UcxDescription` of native/index.ts; null if the addon was built without UCX. Loads UCX. */
Napi::Value describe_ucx(Napi::Env env);

}  // namespace switchyard::addon
