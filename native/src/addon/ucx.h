#pragma once

#include <napi.h>

namespace switchyard::addon {

/** The member `ucx`: the process's fabric, or null when UCX is not built in. */
void export_ucx(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
