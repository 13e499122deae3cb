#pragma once

#include <napi.h>

namespace switchyard::addon {

/** The function referenceLayer. */
void export_reference(Napi::Object exports);

}  // namespace switchyard::addon
