#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "hazards.h"

/**
 * A CUDA device on the CPU, for tests of what drives one: streams run by themselves, in any order that events allow, and it
 * is known which operations wait for which. What is found wrong is told in words.
 */
namespace fake_cuda {

/** Which of the operations that may run runs next. */
enum class Order {
  /** The oldest, at once: before the call that queued it returns. */
  queued,
  /** Any, after a while. */
  random,
  /** Any, once the host has been quiet for a while or waits. */
  late,
  /** Any but those of one stream, as long as there are others: these at once. */
  starved,
};

/** What cuBLASLt's heuristic may offer. */
enum Algorithm : uint64_t {
  /** Sums parts of the depth apart. */
  splits_depth,
  /** Sums less exactly where there are few rows. */
  depends_on_rows,
  /** Takes no product of one row. */
  refuses_single_rows,
  /** As steady, but for 37 rows. */
  differs_at_37_rows,
  /** As steady, with tiles of 256 rows. */
  steady_in_tall_tiles,
  /** As steady, with tiles of 128 rows and 320 outputs. */
  steady_in_wide_tiles,
  /** Sums each element in the order of the depth, and has tiles of 8 rows. */
  steady,
};

struct Options {
  Order order = Order::queued;
  uint64_t seed = 1;
  /** Streams share so many queues, in turn, and each queue runs one operation after the other; 0: each has its own. */
  size_t hardware_queues = 0;
  /** This call of the runtime, counted from 1, fails; 0: none does. */
  uint64_t failing_call = 0;
  /** The device is lost with it: later calls fail too, and nothing that is queued runs, host functions neither. */
  bool for_good = false;
  /** The device is lost by itself, as that call of cudaStreamQuery, counted from 1, is the first to tell; 0: it is not. */
  uint64_t failing_query = 0;
  /** This wait, counted from 1 among those that order anything, does nothing; 0: none. */
  uint64_t ignored_wait = 0;
  size_t memory_bytes = size_t{4} << 30;
  std::vector<Algorithm> algorithms = {steady};
};

struct Report {
  /** Missing waits, memory used too early or too late. */
  std::vector<std::string> hazards;
  /** When the device was lost; null: it was not. */
  std::optional<std::chrono::steady_clock::time_point> lost_at;
  /** Calls that can fail, and those of them that ask whether a stream has ended. */
  uint64_t calls = 0, queries = 0;
  /** Waits that ordered something which was not ordered without them. */
  uint64_t waits = 0;
  /** In words, the one that was ignored; empty: there were not as many. */
  std::string ignored_wait;
  /** Products that ran, by algorithm. */
  std::map<uint64_t, uint64_t> products;
  uint64_t copies_in = 0;
  uint64_t frees = 0;
  /** The most memory of the device that was in use at a time. */
  size_t memory_bytes_max = 0;
  uint64_t registrations = 0;
  /** Streams that were made, and those of them in which nothing was queued. */
  size_t streams = 0, streams_unused = 0;
  /** Operations in a stream behind a host function: they wait for the host. Events and waits do no harm. */
  uint64_t behind_host_functions = 0;
  /** CUDA_DEVICE_MAX_CONNECTIONS when the runtime was called first; null: it was not set. */
  std::optional<std::string> connections;
  /** Asynchronous copies from or to memory that is not page-locked: the host waits in them. */
  uint64_t pageable_copies = 0;
};

/** Begins anew, and takes CUDA_DEVICE_MAX_CONNECTIONS out of the environment. Nothing of the device may be in use. */
void reset(const Options& options);
Report report();
/** As long as it is held the device begins nothing; who waits for it waits for that. */
void hold(bool held);

/**
 * To be called by a thread of the host before it reads or writes memory that may be page-locked: it must have waited for what the device does
 * there, or have synchronised with a thread that has (hosts.h).
 */
void host_reads(const void* begin, size_t bytes);
void host_writes(const void* begin, size_t bytes);

/** What an operation does when it runs. */
using Run = std::function<void(const Moment& moment)>;
/** Queues an operation as a kernel's launch does: cudaGetLastError tells how it went. */
cudaError_t launch(cudaStream_t stream, const char* what, Run run);
/** To be called by an operation before it reads or writes memory of the device. False: it must not. */
bool reads(const Moment& moment, const void* begin, size_t bytes);
bool writes(const Moment& moment, const void* begin, size_t bytes);
/** The same, of the host's memory. */
bool reads_host(const Moment& moment, const void* begin, size_t bytes);

}  // namespace fake_cuda
