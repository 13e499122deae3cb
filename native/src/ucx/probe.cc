#include "ucx/probe.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>

#include "ucx/descriptors.h"
#include "ucx/peer_memory.h"

namespace switchyard::ucx {
namespace {

/** A peer that lives, and has lost its core in the middle of a write, goes on within that. */
constexpr auto patience = std::chrono::milliseconds(500);
/** This process may have stood still itself: what waits for it must have been looked at afterwards. */
constexpr int late_looks = 100;
/** A UCX worker takes about ten; where it gets only some of them UCX ends the process. */
constexpr size_t spare_descriptors = 32;

void require_descriptors() {
  std::array<int, spare_descriptors> spare;
  size_t count = 0;
  while (count < spare.size() && (spare[count] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) ++count;
  for (size_t i = 0; i < count; ++i) close(spare[i]);
  if (count < spare.size()) throw Error(Code::resource_exhausted, "fewer than " + std::to_string(spare_descriptors) + " file descriptors are free, which UCX may need");
}

void ended(void* request, ucs_status_t, void* under_way) {
  --*static_cast<size_t*>(under_way);
  if (request) ucp_request_free(request);
}

struct ProbeMessage {
  WireHeader header;
  size_t* under_way;
};

void sent(void* request, ucs_status_t status, void* message) {
  const std::unique_ptr<ProbeMessage> over(static_cast<ProbeMessage*>(message));
  ended(request, status, over->under_way);
}

}  // namespace

ucp_worker_h create_ucx_worker(ucp_context_h context) {
  require_descriptors();
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h worker = nullptr;
  check(ucp_worker_create(context, &params, &worker), "ucp_worker_create");
  return worker;
}

Prober::Prober(const char* transport) {
  // What UCX has not for want of them it takes for what this system has not.
  require_descriptors();
  const Descriptors before;
  ucp_config_t* config = nullptr;
  check(ucp_config_read(nullptr, nullptr, &config), "ucp_config_read");
  const std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)> released(config, ucp_config_release);
  check(ucp_config_modify(config, "TLS", transport), "UCX_TLS");
  check(ucp_config_modify(config, "NET_DEVICES", "all"), "UCX_NET_DEVICES");
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM;
  check(ucp_init(&params, config, &context_), "ucp_init");
  try {
    worker_ = create_ucx_worker(context_);
  } catch (...) {
    ucp_cleanup(context_);
    throw;
  }
  before.keep_from_children();
}

Prober::~Prober() {
  for (int looks = 0; under_way_ > 0 && looks < late_looks; ++looks) ucp_worker_progress(worker_);
  // UCX aborts the process when a worker is destroyed under operations: one whose message never left stays.
  if (under_way_ > 0) return;
  ucp_worker_destroy(worker_);
  ucp_cleanup(context_);
}

Probe::Probe(Prober& prober, std::span<const uint8_t> address) : prober_(prober) {
  // Without notice of the peer's death: with it the other end would make an endpoint too, and keep it.
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  check(ucp_ep_create(prober.worker_, &params, &endpoint_), "ucp_ep_create");
}

Probe::~Probe() {
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = ended;
  param.user_data = &prober_.under_way_;
  ++prober_.under_way_;
  const ucs_status_ptr_t pending = ucp_ep_close_nbx(endpoint_, &param);
  if (!UCS_PTR_IS_PTR(pending)) ended(nullptr, UCS_OK, &prober_.under_way_);
}

void Probe::send() {
  number_ = random_mark();
  until_ = std::chrono::steady_clock::now() + patience;
  late_looks_ = 0;
  under_way_ = true;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  param.cb.send = sent;
  // UCX reads the header when the message leaves, which may be after the probe was given up.
  auto* const message = new ProbeMessage{{.kind = Kind::probe, .key = number_}, &prober_.under_way_};
  param.user_data = message;
  ++prober_.under_way_;
  const ucs_status_ptr_t pending = ucp_am_send_nbx(endpoint_, message_id, &message->header, sizeof(WireHeader), nullptr, 0, &param);
  if (!UCS_PTR_IS_PTR(pending)) sent(nullptr, UCS_OK, message);
}

bool Probe::look() {
  ucp_worker_progress(prober_.worker_);
  return !under_way_ || std::chrono::steady_clock::now() < until_ || ++late_looks_ < late_looks;
}

}  // namespace switchyard::ucx
