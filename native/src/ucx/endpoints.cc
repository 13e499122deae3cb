#include "ucx/progress.h"

namespace switchyard::ucx {

/** The endpoint to a peer, made if there is none. */
ucs_status_t Fabric::Progress::find_endpoint(Worker& worker, const std::vector<uint8_t>& peer_address, ucp_ep_h& endpoint) {
  for (const Endpoint& known : endpoints_) {
    if (known.abandoned || known.worker != &worker || known.peer_address != peer_address) continue;
    endpoint = known.handle;
    return UCS_OK;
  }
  ucp_ep_params_t params{};
  params.field_mask =
      UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(peer_address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {on_endpoint_error, this};
  ucp_ep_h made = nullptr;
  const ucs_status_t status = ucp_ep_create(worker.handle, &params, &made);
  if (status != UCS_OK) return status;
  endpoints_.push_back({.handle = made, .worker = &worker, .peer_address = peer_address});
  descriptors_.keep_connections_from_children();
  endpoint = made;
  return UCS_OK;
}

/** The first word of a peer: its connections have been accepted meanwhile. `endpoint` may be null. */
void Fabric::Progress::hear(ucp_ep_h endpoint) {
  const auto found = std::ranges::find(endpoints_, endpoint, &Endpoint::handle);
  if (found == endpoints_.end() || std::exchange(found->heard, true)) return;
  descriptors_.keep_connections_from_children();
}

void Fabric::Progress::on_endpoint_error(void* self, ucp_ep_h endpoint, ucs_status_t status) {
  auto& progress = *static_cast<Progress*>(self);
  progress.suspect(endpoint);
  progress.endpoint_over(endpoint, gone(status));
}

/** Its channels fail: the peer is gone. */
void Fabric::Progress::endpoint_over(ucp_ep_h endpoint, const Error& error) {
  const auto found = std::ranges::find(endpoints_, endpoint, &Endpoint::handle);
  if (found == endpoints_.end()) return;
  // To unmap takes time, and closing within a handler of UCX is not allowed: both wait.
  const std::shared_ptr<PeerFile> file = found->file.lock();
  std::erase_if(unused_files_, [&](const auto& unused) { return unused.second == file; });
  Worker* const worker = found->worker;
  worker->lost_peer = true;
  endpoints_.erase(found);
  ++worker->under_way;
  for (const auto& [id, channel] : channels_) {
    if (channel->endpoint != endpoint) continue;
    fail(*channel, error);
    channel->endpoint = nullptr;
  }
  deferred_.push_back([worker, endpoint, file] { close_endpoint(*worker, endpoint, true); });
}

/** Of what is under way already. `force`: to flush the endpoint is of no use. */
void Fabric::Progress::close_endpoint(Worker& worker, ucp_ep_h endpoint, bool force) {
  const auto closed = [](void* handle, ucs_status_t, void* closing) {
    --static_cast<Worker*>(closing)->under_way;
    if (handle) ucp_request_free(handle);
  };
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  param.cb.send = closed;
  param.user_data = &worker;
  const ucs_status_ptr_t pending = ucp_ep_close_nbx(endpoint, &param);
  if (!UCS_PTR_IS_PTR(pending)) closed(nullptr, UCS_PTR_RAW_STATUS(pending), &worker);
}

/** Shared memory of a process that goes on does not tell that this fabric, or a worker of it, has ended. */
void Fabric::Progress::say_goodbye(const Endpoint& endpoint) {
  const std::vector<uint8_t>& own = endpoint.worker->address;
  if (endpoint.peer_address == own) return;
  static const WireHeader header{.kind = Kind::goodbye};
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK;
  param.cb.send = [](void* handle, ucs_status_t, void*) { ucp_request_free(handle); };
  ucp_am_send_nbx(endpoint.handle, message_id, &header, sizeof(header), own.data(), own.size(), &param);
}

/** Only those know an address who were told it over the control plane. */
void Fabric::Progress::receive_goodbye(std::span<const uint8_t> peer_address) {
  std::vector<ucp_ep_h> over;
  for (const Endpoint& endpoint : endpoints_) {
    if (std::ranges::equal(endpoint.peer_address, peer_address)) over.push_back(endpoint.handle);
  }
  for (const ucp_ep_h endpoint : over) endpoint_over(endpoint, Error(Code::link_lost, "the UCX peer is gone: it has ended"));
}

}  // namespace switchyard::ucx
