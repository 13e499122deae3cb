#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "ucx/tls.h"

struct evp_cipher_ctx_st;

namespace switchyard::ucx {

/** RFC 8446, 5.1. */
enum class ContentType : uint8_t { handshake = 22, application_data = 23 };

/**
 * The records of one direction of a TLS 1.3 connection after its handshake, by TLS_AES_128_GCM_SHA256 (RFC 8446, 5.2): what is
 * encrypted goes from where it lies into the record, and back, in one pass. Not for several threads at once.
 */
class RecordCipher {
 public:
  static constexpr size_t header_bytes = 5;
  static constexpr size_t content_bytes_max = 16 * 1024;
  /** What follows the content: its type and the tag. */
  static constexpr size_t trailer_bytes = 17;
  static constexpr size_t record_bytes_max = header_bytes + content_bytes_max + trailer_bytes;

  /** `traffic_secret`: the direction's (7.1). Throws Error(internal) if OpenSSL lacks the cipher. */
  RecordCipher(const Secret& traffic_secret, bool seals);
  ~RecordCipher();

  /** Writes header_bytes + length + trailer_bytes to `record`. `length`: at most content_bytes_max. */
  void seal(ContentType type, const void* content, size_t length, unsigned char* record);
  struct Opened {
    ContentType type;
    size_t length;
  };
  /**
   * Decrypts a whole record, of `length` bytes behind its header, to `content`, where length - trailer_bytes are written. What pads it is not
   * counted (5.4). Nothing: it is not genuine.
   */
  std::optional<Opened> open(const unsigned char* record, size_t length, void* content);

  /** Goes on with the next key (7.2). */
  void renew();
  /** Under this key. */
  uint64_t records() const { return records_; }

 private:
  void use_secret();
  std::array<unsigned char, 12> nonce();

  struct Freed {
    void operator()(evp_cipher_ctx_st* context) const;
  };
  const std::unique_ptr<evp_cipher_ctx_st, Freed> context_;
  const bool seals_;
  Secret secret_;
  std::array<unsigned char, 12> iv_{};
  uint64_t records_ = 0;
};

}  // namespace switchyard::ucx
