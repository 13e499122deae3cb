#include "ucx/probe.h"

#include <algorithm>

#include "ucx/descriptors.h"
#include "ucx/peer_memory.h"

namespace switchyard::ucx {
namespace {

/** A peer that lives, and has lost its core in the middle of a write, goes on within that. */
constexpr auto patience = std::chrono::milliseconds(500);
/** This process may have stood still itself: what waits for it must have been looked at afterwards. */
constexpr int late_looks = 100;
/** To end an endpoint, over which one message has left, takes a few. */
constexpr int end_looks = 1000;

void ended(void* request, ucs_status_t, void* under_way) {
  --*static_cast<int*>(under_way);
  if (request) ucp_request_free(request);
}

}  // namespace

ucp_worker_h create_ucx_worker(ucp_context_h context) {
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h worker = nullptr;
  check(ucp_worker_create(context, &params, &worker), "ucp_worker_create");
  return worker;
}

std::unique_ptr<Probe> Probe::send(ucp_context_h context, std::span<const uint8_t> address) {
  try {
    return std::unique_ptr<Probe>(new Probe(context, address));
  } catch (const Error&) {
    return nullptr;
  }
}

Probe::Probe(ucp_context_h context, std::span<const uint8_t> address) : until_(std::chrono::steady_clock::now() + patience) {
  const Descriptors before;
  worker_ = create_ucx_worker(context);
  before.keep_from_children();
  // Without notice of the peer's death: with it the other end would make an endpoint too, and keep it.
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  if (ucp_ep_create(worker_, &params, &endpoint_) != UCS_OK) {
    ucp_worker_destroy(worker_);
    throw Error(Code::internal, "no endpoint to this process");
  }
  header_.kind = Kind::probe;
  header_.key = random_mark();
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = ended;
  param.user_data = &under_way_;
  ++under_way_;
  const ucs_status_ptr_t pending = ucp_am_send_nbx(endpoint_, message_id, &header_, sizeof(header_), nullptr, 0, &param);
  if (!UCS_PTR_IS_PTR(pending)) ended(nullptr, UCS_OK, &under_way_);
}

Probe::State Probe::look() {
  ucp_worker_progress(worker_);
  if (!closing_) {
    const bool late = std::chrono::steady_clock::now() >= until_ && ++late_looks_ >= late_looks;
    if (!heard_ && !late) return State::under_way;
    close();
  }
  if (under_way_ > 0 && ++end_looks_ < end_looks) return State::under_way;
  return heard_ ? State::heard : State::lost;
}

void Probe::close() {
  closing_ = true;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = ended;
  param.user_data = &under_way_;
  ++under_way_;
  const ucs_status_ptr_t pending = ucp_ep_close_nbx(endpoint_, &param);
  if (!UCS_PTR_IS_PTR(pending)) ended(nullptr, UCS_OK, &under_way_);
}

Probe::~Probe() {
  // UCX aborts the process when a worker is destroyed under operations: one whose message never left stays.
  if (over()) ucp_worker_destroy(worker_);
}

}  // namespace switchyard::ucx
