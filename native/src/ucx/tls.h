#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace switchyard::ucx {

/** What both ends of an encrypted stream know, and nobody else: a pre-shared key of TLS 1.3. */
using Secret = std::array<uint8_t, 32>;

/** Records that one key may protect: fewer than the 2^24.5 of RFC 8446, 5.5. */
constexpr uint64_t records_a_key_max = uint64_t{1} << 24;

/** Whether this build can encrypt: it was made with OpenSSL. */
bool can_encrypt();

/**
 * TLS 1.3 on a socket that does not block, with a key that both ends share and one that is agreed on for each connection
 * (psk_dhe_ke, AES-128-GCM). OpenSSL shakes hands; records are protected from where rows lie and to where they go, and gathered, so
 * that few system calls move many of them.
 */
class TlsSession {
 public:
  /** Of a channel that is waited for; nothing: there is none. */
  using SecretOf = std::function<std::optional<Secret>(uint64_t channel)>;

  /** For who connects: `channel` is the peer's, whose secret it is. */
  static std::unique_ptr<TlsSession> connecting(int socket, uint64_t channel, const Secret& secret,
                                                uint64_t records_a_key = records_a_key_max);
  /** For who was connected to. */
  static std::unique_ptr<TlsSession> accepting(int socket, SecretOf secret_of, uint64_t records_a_key = records_a_key_max);
  virtual ~TlsSession() = default;

  /** As recv without blocking. `fetch`: whether the socket may be read, beside what was read of it before. */
  virtual ssize_t receive(void* to, size_t wanted, bool fetch) = 0;
  /** As send without blocking: what it takes waits here until there is much of it, or `flush` is called. */
  virtual ssize_t send(const void* from, size_t length) = 0;
  /** Sends what waits here. False if the connection is over. */
  virtual bool flush() = 0;
  /** Something waits to be sent: for room, and not for the peer's part of the handshake. */
  virtual bool unsent() const = 0;
  /** The peer has proved that it has the secret. */
  virtual bool established() const = 0;
  /** Encrypted bytes that were read of the socket and not decrypted, at most. */
  virtual size_t held() const = 0;
  /** The channel whose secret the peer has, at the end that was connected to; 0 before that. */
  virtual uint64_t channel() const = 0;
};

}  // namespace switchyard::ucx
