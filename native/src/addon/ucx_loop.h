#pragma once

#include <napi.h>

#include <memory>

#include "ucx/fabric.h"

namespace switchyard::addon {

/** Lets the event loop of this environment drive the fabric, as Fabric::attach_loop has it, until the environment ends. JS thread. */
void drive_by_loop(Napi::Env env, const std::shared_ptr<ucx::Fabric>& fabric);

}  // namespace switchyard::addon
