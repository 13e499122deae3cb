#pragma once

#include <ucp/api/ucp.h>

#include <chrono>
#include <memory>
#include <span>

#include "runtime/error.h"
#include "ucx/wire.h"

namespace switchyard::ucx {

/** Throws INTERNAL with UCX's words. */
inline void check(ucs_status_t status, const char* call) {
  if (status != UCS_OK) throw Error(Code::internal, std::string(call) + ": " + ucs_status_string(status));
}

/** A UCX worker that one thread at a time uses. Throws INTERNAL. */
ucp_worker_h create_ucx_worker(ucp_context_h context);

/** A message from this process to one of its own UCX workers, by another that is made for it: does it come through? Used by who drives UCX. */
class Probe {
 public:
  /** Null if UCX makes none: then nothing is known. */
  static std::unique_ptr<Probe> send(ucp_context_h context, std::span<const uint8_t> address);
  /** Destroys its worker if it is over. */
  ~Probe();
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  /** A probe with that number has come. */
  void hear(const Key& number) { heard_ |= same_key(number, header_.key); }

  enum class State { under_way, heard, lost };
  /** Between calls, the worker must be driven. */
  State look();
  /** Nothing of it is under way. */
  bool over() const { return closing_ && under_way_ == 0; }

 private:
  Probe(ucp_context_h context, std::span<const uint8_t> address);
  void close();

  ucp_worker_h worker_ = nullptr;
  ucp_ep_h endpoint_ = nullptr;
  /** Of the send, and of the endpoint's end. */
  int under_way_ = 0;
  WireHeader header_{};
  bool heard_ = false;
  bool closing_ = false;
  const std::chrono::steady_clock::time_point until_;
  int late_looks_ = 0;
  int end_looks_ = 0;
};

}  // namespace switchyard::ucx
