#include "ucx/peer_memory.h"

#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#include <sstream>
#include <string>

#include "runtime/error.h"

namespace switchyard::ucx {

std::optional<PeerMemory> PeerMemory::open(const Beacon& beacon, const Mark& mark) {
  // A peer that names this process would have it read itself; there is no honest use for that.
  if (beacon.process <= 0 || beacon.process == getpid()) return std::nullopt;
  const PeerMemory memory(beacon, mark);
  if (!memory.read(beacon.mark_address, sizeof(Mark), Mark{}.data())) return std::nullopt;
  return memory;
}

bool PeerMemory::read(uint64_t address, size_t length, void* out) const {
  Mark before{}, after{};
  const auto at = [](uint64_t remote) { return reinterpret_cast<void*>(remote); };
  const iovec local[] = {{before.data(), sizeof(Mark)}, {out, length}, {after.data(), sizeof(Mark)}};
  const iovec remote[] = {{at(beacon_.mark_address), sizeof(Mark)},
                          {at(address), length},
                          {at(beacon_.mark_address), sizeof(Mark)}};
  const ssize_t wanted = static_cast<ssize_t>(length + 2 * sizeof(Mark));
  return process_vm_readv(beacon_.process, local, 3, remote, 3, 0) == wanted && before == mark_ && after == mark_;
}

Mark random_mark() {
  Mark mark;
  if (getentropy(mark.data(), mark.size()) != 0) throw Error(Code::internal, "the system gives no random bytes");
  return mark;
}

bool peer_memory_allowed(const char* transports) {
  if (!transports || !*transports) return true;
  const bool negated = *transports == '^';
  std::istringstream names(transports + (negated ? 1 : 0));
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "cma" || name == "all" || name == "sm" || name == "shm") return !negated;
  }
  return negated;
}

}  // namespace switchyard::ucx
