#pragma once

#include <netinet/in.h>

#include <cstdint>
#include <cstring>

#include "ucx/fabric.h"

namespace switchyard::ucx {

/** The active-message id that carries every message of the product. */
inline constexpr unsigned message_id = 0;
/**
 * UCX 1.13 keeps handlers in a table of even length whose other entries it leaves undefined, and calls whatever is there
 * for a peer that names such an id. With this id registered too the table is full.
 */
inline constexpr unsigned stray_id = 1;

/** What an active message is, and in brackets what its data is. */
enum class Kind : uint32_t {
  /** [rows, metadata] */
  message = 1,
  /** [Mark] Write this number into your slab memory and say where. */
  challenge = 2,
  /** [Beacon] Where the number is. */
  beacon = 3,
  /** [] The number was read there: messages may be offered. */
  may_offer = 4,
  /** [Offer] A message that lies in the sender's slab memory until it is taken. */
  offer = 5,
  /** [] The offer of this sequence number was read. */
  taken = 6,
  /** [] The sender of this takes no more offers. */
  closing = 7,
  /** [Place] Connect there, and say `stream_hello` on that connection. */
  stream_offer = 8,
  /** [] First on a stream: it belongs to this channel. */
  stream_hello = 9,
  /** [] On a stream, in answer: both ends may send messages on it. */
  stream_ready = 10,
  /** [address] The fabric of that address ends, and all its channels with it. Of no channel. */
  goodbye = 11,
  /** [] From a process to itself, with a number of its own for a key: whether anything still comes through. Of no channel. */
  probe = 12,
};

/** A number that proves which process holds it. */
using Mark = std::array<uint8_t, 16>;

/** Slab memory as its owner sees it: the process, its descriptor of the memory's file, and the mark's place in the file. */
struct Beacon {
  int64_t process = 0;
  int64_t descriptor = 0;
  uint64_t mark_offset = 0;
};

/**
 * Where in the file of the sender's slab memory the message is: rows and metadata; or, if `source_row_bytes` is not 0, metadata
 * and the indices of rows of that length from `source` on.
 */
struct Offer {
  uint64_t offset = 0;
  uint64_t source = 0;
  uint64_t source_row_bytes = 0;
};

/** An IP address and a port. */
struct Place {
  /** Of either family: the first field tells which. */
  sockaddr_in6 address{};

  /** Both families have the port at the same place. */
  bool valid() const {
    return (address.sin6_family == AF_INET || address.sin6_family == AF_INET6) && address.sin6_port != 0;
  }
};

/** The header of an active message, and of a message on a stream. Both ends are little-endian x86-64. */
struct WireHeader {
  static constexpr uint32_t expected_magic = 0x33445953;  // "SYD3"

  uint32_t magic = expected_magic;
  Kind kind = Kind::message;
  uint64_t channel = 0;
  /** Of `message` and `offer`. */
  uint64_t row_bytes = 0;
  uint64_t meta_bytes = 0;
  /**
   * `message` and `offer` are counted from 0 on each channel: UCX may complete a long message after a short one that
   * followed it. `taken` has the number of its offer.
   */
  uint64_t sequence = 0;
  Key key{};
};
static_assert(sizeof(WireHeader) == 56);

/** Compares in constant time. */
inline bool same_key(const Key& left, const Key& right) {
  unsigned difference = 0;
  for (size_t i = 0; i < left.size(); ++i) difference |= left[i] ^ right[i];
  return difference == 0;
}

}  // namespace switchyard::ucx
