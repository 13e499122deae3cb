#pragma once

#include <functional>
#include <memory>

#include "experts/backend.h"
#include "experts/cuda/module.h"
#include "experts/cuda/ring.h"

namespace switchyard::cuda {

/** Hears of every batch that has ended, on the backend's thread, before its calls are done. */
using BatchObserver = std::function<void(const BatchTimes&)>;

/** As Module::create. */
std::unique_ptr<ExpertBackend> create_backend(int device, BatchObserver observer = {});

/** As Module::describe. */
Description describe_devices();

}  // namespace switchyard::cuda
