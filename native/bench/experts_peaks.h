#pragma once

#include <cstddef>

namespace switchyard::bench {

/** The instruction sets that experts are computed with. */
enum class Isa { avx2, avx512_bf16, amx_bf16 };

/** Asks the system for what this process needs to compute with them, before anything does. Throws std::runtime_error if it gives that not. */
void prepare(Isa isa);

/** What one core can do at best, for ratios. Each measures once, for some milliseconds. */

/** Multiply-adds per second times two with every operand in registers. */
double register_flops(Isa isa);
/** The same with operands read from the first-level cache, each used several times, as a product must. */
double cached_flops(Isa isa);
/** Bytes per second of reading memory: in four streams or in order, whichever is faster. */
double read_bytes_per_second(const void* memory, size_t bytes);

/** CPU time of the process: other programs must not count, and a backend computes on threads of its own. */
double seconds_now();

}  // namespace switchyard::bench
