#pragma once

namespace switchyard {

/** Float32 operations a second of this thread's core, by fused multiply-adds that touch no memory: the limit of a gate. */
double measure_fma_peak();

}  // namespace switchyard
