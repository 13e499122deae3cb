#pragma once

#include <napi.h>

namespace switchyard::addon {

/** The functions ingestRows, normalizeRows, groupRows, packRows, combineRows and reduceRows. */
void export_row_operations(Napi::Object exports);

}  // namespace switchyard::addon
