#pragma once

#include <ucp/api/ucp.h>

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "runtime/error.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/** Throws INTERNAL with UCX's words, RESOURCE_EXHAUSTED for want of memory, which there may be later. */
inline void check(ucs_status_t status, const char* call) {
  if (status == UCS_OK) return;
  const bool may_pass = status == UCS_ERR_NO_MEMORY || status == UCS_ERR_NO_RESOURCE || status == UCS_ERR_SHMEM_SEGMENT;
  throw Error(may_pass ? Code::resource_exhausted : Code::internal, std::string(call) + ": " + ucs_status_string(status));
}

/** A UCX worker that one thread at a time uses. Throws INTERNAL, RESOURCE_EXHAUSTED where too few file descriptors or too little memory is free. */
ucp_worker_h create_ucx_worker(ucp_context_h context);

/** What sends messages from this process to its own UCX workers, by one transport of shared memory. Used by who drives UCX, like its probes. */
class Prober {
 public:
  /** Throws INTERNAL where there is no such transport, and as create_ucx_worker does. */
  explicit Prober(const char* transport);
  ~Prober();
  Prober(const Prober&) = delete;
  Prober& operator=(const Prober&) = delete;

 private:
  friend class Probe;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  /** Sends, and closing endpoints, that UCX has not ended. */
  size_t under_way_ = 0;
};

/** Whether messages still come through to one of this process's UCX workers. */
class Probe {
 public:
  /** Throws as `check` does. The prober must outlive it. */
  Probe(Prober& prober, std::span<const uint8_t> address);
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  bool under_way() const { return under_way_; }
  /** Not while one is under way. */
  void send();
  /** A probe with that number has come. */
  void hear(const Key& number) { under_way_ &= !same_key(number, number_); }
  /** False: what was sent does not arrive. Between calls, the worker must be driven. */
  bool look();

 private:
  Prober& prober_;
  ucp_ep_h endpoint_ = nullptr;
  Key number_{};
  bool under_way_ = false;
  std::chrono::steady_clock::time_point until_{};
  int late_looks_ = 0;
};

}  // namespace switchyard::ucx
