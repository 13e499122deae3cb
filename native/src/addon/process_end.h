#pragma once

#include <napi.h>

namespace switchyard::addon {

/** The function `endWithin`. */
void export_process_end(Napi::Object exports);

}  // namespace switchyard::addon
