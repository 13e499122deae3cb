// Channels with a secret: what of them leaves this machine does so on an encrypted stream, or not at all.
#include <algorithm>
#include <set>

#include "ucx/progress.h"

namespace switchyard::ucx {

/** Whether the channel's messages may leave this machine encrypted alone, and UCX would carry them beyond it. */
bool Fabric::Progress::guarded(Channel& channel) {
  if (!channel.limits.secret) return false;
  if (!channel.endpoint) return true;
  if (!channel.stays_here) {
    static const std::set<std::string> shared{"posix", "sysv", "cma", "knem", "xpmem", "self"};
    const std::vector<Lane> lanes = lanes_of(channel.endpoint);
    const auto is_shared = [](const Lane& lane) { return shared.contains(lane.transport); };
    channel.stays_here = !lanes.empty() && std::ranges::all_of(lanes, is_shared);
  }
  return !*channel.stays_here;
}

std::optional<Secret> Fabric::Progress::secret_of(uint64_t id) const {
  const auto found = channels_.find(id);
  return found == channels_.end() ? std::nullopt : found->second->limits.secret;
}

/** Why no stream can be made that the channel needs; nothing: it can, or needs none. */
std::optional<Error> Fabric::Progress::why_unguarded(Channel& channel) {
  if (!guarded(channel)) return std::nullopt;
  const std::vector<Lane> lanes = lanes_of(channel.endpoint);
  if (tcp_lane(lanes)) return std::nullopt;
  std::string names;
  for (const Lane& lane : lanes) names += (names.empty() ? "" : ", ") + lane.transport;
  return Error(Code::config_invalid, "UCX would carry rows to another machine by " + names +
                                         ", which cannot encrypt; allowed: UCX_TLS with tcp, or allowPlaintextRows");
}

/** Sends a message that may leave this machine encrypted alone: on the stream, for which it waits. */
void Fabric::Progress::send_guarded(Channel& channel, Message message, SendDone done) {
  if (channel.failure) {
    message = {};
    return done(channel.failure);
  }
  if (!channel.stream || !channel.stream->ready) {
    channel.waiting.emplace_back(std::move(message), std::move(done));
    return;
  }
  if (!gather(message, done)) return;
  const WireHeader header = next_header(channel, message);
  push(channel, {header, std::move(message), std::move(done)});
}

void Fabric::Progress::end_waiting(Channel& channel, const Error& error) {
  for (auto& [message, done] : std::exchange(channel.waiting, {})) {
    message = {};
    if (done) done(error);
  }
}

/** Sends what has waited for the stream. */
void Fabric::Progress::send_waiting(uint64_t id) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;
  Channel& channel = *found->second;
  if (!channel.stream || !channel.stream->ready) return;
  for (auto& [message, done] : std::exchange(channel.waiting, {})) send_guarded(channel, std::move(message), std::move(done));
}

}  // namespace switchyard::ucx
