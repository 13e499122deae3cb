#pragma once

#include <napi.h>

namespace switchyard::addon {

/** Throws Napi::Error, saying what is missing, on a processor that the kernels cannot run on. */
void require_processor(Napi::Env env);

/** The functions configure, describe, measureMemcpy and measureFma. */
void export_machine(Napi::Object exports);

}  // namespace switchyard::addon
