#include "ucx/fabric.h"

#include "ucx/progress.h"

namespace switchyard::ucx {

Fabric::Fabric(SlabArena& arena, Reach reach) : progress_(std::make_unique<Progress>(arena, reach)) {}
Fabric::~Fabric() = default;

std::vector<uint8_t> Fabric::address(Peers peers) { return progress_->address(peers); }

uint64_t Fabric::open(const Key& key, ChannelLimits limits, ChannelEvents events, Peers peers) {
  return progress_->open(key, limits, std::move(events), peers);
}

void Fabric::connect(uint64_t channel, std::vector<uint8_t> peer_address, uint64_t peer_channel, ConnectDone done) {
  progress_->connect(channel, std::move(peer_address), peer_channel, std::move(done));
}

void Fabric::send(uint64_t channel, Message message, SendDone done) {
  if (!message.slab) throw_invalid("message.slab", "null", "a slab");
  const size_t size = message.slab->capacity();
  // select_rows has checked what it made.
  if (!message.source && (message.row_bytes > size || message.meta_bytes > size - message.row_bytes)) {
    throw_invalid("message.meta_bytes", message.meta_bytes,
                  "at most " + std::to_string(size - std::min(size, message.row_bytes)) + " after the rows");
  }
  progress_->send(channel, std::move(message), std::move(done));
}

void Fabric::abandon(uint64_t channel) { progress_->abandon(channel); }

void Fabric::close(uint64_t channel, CloseDone done, std::chrono::milliseconds flush) {
  progress_->close(channel, std::move(done), flush);
}

std::optional<int> Fabric::attach_loop() { return progress_->attach_loop(); }

void Fabric::detach_loop() { progress_->detach_loop(); }

bool Fabric::drive() { return progress_->drive(); }

std::string Fabric::transports(uint64_t channel) { return progress_->transports(channel); }

FabricStats Fabric::stats() const { return progress_->stats(); }

std::string Fabric::version() {
  unsigned major = 0, minor = 0, release = 0;
  ucp_get_version(&major, &minor, &release);
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
}

}  // namespace switchyard::ucx
