#pragma once

#include <cstddef>

namespace switchyard::bench {

/** What one core can do at best, for ratios. Each measures once, for some milliseconds. */

/** Multiply-adds per second times two with every operand in registers. */
double register_flops(bool avx512_bf16);
/** The same with operands read from the first-level cache, each used several times, as a product must. */
double cached_flops(bool avx512_bf16);
/** Bytes per second of reading memory in order. */
double read_bytes_per_second(const void* memory, size_t bytes);

/** Time that the calling thread ran: everything here runs on one thread, and other programs must not count. */
double seconds_now();

}  // namespace switchyard::bench
