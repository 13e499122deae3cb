#include "ucx/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "runtime/error.h"
#include "ucx/tls_records.h"

namespace switchyard::ucx {
namespace {

/** What one system call moves of encrypted bytes: as much as the system holds of a stream. */
constexpr size_t gathered_bytes = 256 * 1024;
/** Room for as much again, and for what records have beside their content. */
constexpr size_t out_bytes = 2 * gathered_bytes + 4096;
/** The message of RFC 8446, 4.6.3, which does not ask for the peer's. */
constexpr unsigned char key_update[] = {24, 0, 0, 1, 0};
/** Records without rows that may follow each other: while they come, nothing else has its turn. */
constexpr int without_rows_max = 32;
constexpr unsigned char cipher_id[2] = {0x13, 0x01};  // TLS_AES_128_GCM_SHA256

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* object) const { Free(object); }
};
using Context = std::unique_ptr<SSL_CTX, Freed<SSL_CTX, SSL_CTX_free>>;
using Connection = std::unique_ptr<SSL, Freed<SSL, SSL_free>>;

template <typename T>
T* checked(T* made) {
  if (made == nullptr) throw Error(Code::internal, "OpenSSL cannot make what a stream needs");
  return made;
}

class Session : public TlsSession {
 public:
  Session(int socket, bool connects, uint64_t channel, SecretOf secret_of, uint64_t records_a_key)
      : socket_(socket), connects_(connects), channel_(channel), secret_of_(std::move(secret_of)), records_a_key_(records_a_key) {
    handshake_.reset(checked(SSL_new(context())));
    SSL* const ssl = handshake_.get();
    BIO* bio = checked(BIO_new(method()));
    BIO_set_data(bio, this);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl, bio, bio);
    SSL_set_app_data(ssl, this);
    if (connects) {
      SSL_set_psk_use_session_callback(ssl, offer_secret);
      SSL_set_connect_state(ssl);
    } else {
      SSL_set_psk_find_session_callback(ssl, find_secret);
      SSL_set_accept_state(ssl);
    }
  }

  ~Session() override {
    forget(client_secret_);
    forget(server_secret_);
  }

  ssize_t receive(void* to, size_t wanted, bool fetch) override {
    for (;;) {
      if (!established() && !shake()) return -1;
      if (established()) {
        if (const auto opened = open(static_cast<unsigned char*>(to), wanted)) return *opened;
      }
      if (!fetch) {
        errno = EAGAIN;
        return -1;
      }
      std::memmove(in_.get(), in_.get() + taken_, came_ - taken_);
      came_ -= std::exchange(taken_, 0);
      const ssize_t came = ::recv(socket_, in_.get() + came_, gathered_bytes - came_, MSG_DONTWAIT);
      if (came <= 0) return came;
      came_ += came;
    }
  }

  ssize_t send(const void* from, size_t length) override {
    if (!established() && !shake()) return -1;
    if (gathered_ >= gathered_bytes && !flush()) return -1;
    if (!established() || gathered_ >= gathered_bytes) {
      errno = EAGAIN;
      return -1;
    }
    const size_t taken = std::min(length, gathered_bytes);
    for (size_t at = 0; at < taken; at += RecordCipher::content_bytes_max) {
      if (sealer_->records() >= records_a_key_ || renewal_asked_) renew();
      const size_t part = std::min(taken - at, RecordCipher::content_bytes_max);
      seal(ContentType::application_data, static_cast<const unsigned char*>(from) + at, part);
    }
    return static_cast<ssize_t>(taken);
  }

  bool flush() override {
    while (unsent()) {
      const ssize_t moved = ::send(socket_, out_.get() + sent_, gathered_ - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
      sent_ += moved;
      if (sent_ == gathered_) sent_ = gathered_ = 0;
    }
    return true;
  }

  bool unsent() const override { return gathered_ > 0; }
  bool established() const override { return handshake_ == nullptr; }
  // What comes of a handshake is waited for byte by byte.
  size_t held() const override { return established() ? came_ - taken_ : RecordCipher::record_bytes_max; }
  uint64_t channel() const override { return !connects_ && established() ? channel_ : 0; }

 private:
  /** Takes the handshake as far as it goes. False if it has failed. What there is to say is sent at once. */
  bool shake() {
    SSL* const ssl = handshake_.get();
    ERR_clear_error();
    const int good = SSL_do_handshake(ssl);
    const bool waits = good != 1 && SSL_get_error(ssl, good) == SSL_ERROR_WANT_READ;
    if (!flush()) return false;
    if (waits) return true;
    // A server may leave the secret aside and show a certificate, which proves nothing here.
    if (good != 1 || SSL_session_reused(ssl) != 1 || !client_secret_ || !server_secret_) return broken() == 0;
    sealer_.emplace(connects_ ? *client_secret_ : *server_secret_, true);
    opener_.emplace(connects_ ? *server_secret_ : *client_secret_, false);
    forget(client_secret_);
    forget(server_secret_);
    handshake_.reset();
    return true;
  }

  /** As recv does; nothing: no record is complete. */
  std::optional<ssize_t> open(unsigned char* to, size_t wanted) {
    while (rest_.empty()) {
      const unsigned char* const record = in_.get() + taken_;
      const size_t there = came_ - taken_;
      if (there < RecordCipher::header_bytes) return std::nullopt;
      const size_t length = size_t{record[3]} << 8 | record[4];
      if (length < RecordCipher::trailer_bytes || length > RecordCipher::content_bytes_max + RecordCipher::trailer_bytes) return broken();
      if (there < RecordCipher::header_bytes + length) return std::nullopt;
      taken_ += RecordCipher::header_bytes + length;
      unsigned char* const target = length - RecordCipher::trailer_bytes <= wanted ? to : rest_buffer_.data();
      const auto opened = opener_->open(record, length, target);
      if (!opened || ++without_rows_ > without_rows_max) return broken();
      if (opened->type == ContentType::application_data) {
        if (opened->length > 0) without_rows_ = 0;
        if (opened->length > 0 && target == to) return static_cast<ssize_t>(opened->length);
        rest_ = {target, opened->length};
      } else if (opened->type == ContentType::handshake && opened->length == sizeof(key_update) &&
                 std::memcmp(target, key_update, sizeof(key_update) - 1) == 0 && target[sizeof(key_update) - 1] <= 1) {
        opener_->renew();
        renewal_asked_ |= target[sizeof(key_update) - 1] == 1;
      } else {
        return broken();
      }
    }
    // A record that is longer than what was asked for.
    const size_t taken = std::min(wanted, rest_.size());
    std::memcpy(to, rest_.data(), taken);
    rest_ = rest_.subspan(taken);
    return static_cast<ssize_t>(taken);
  }

  void seal(ContentType type, const unsigned char* content, size_t length) {
    sealer_->seal(type, content, length, out_.get() + gathered_);
    gathered_ += RecordCipher::header_bytes + length + RecordCipher::trailer_bytes;
  }

  void renew() {
    seal(ContentType::handshake, key_update, sizeof(key_update));
    sealer_->renew();
    renewal_asked_ = false;
  }

  /** Of all connections; of what the process has of OpenSSL for streams. */
  static SSL_CTX* context() {
    static const Context shared = [] {
      Context made(checked(SSL_CTX_new(TLS_method())));
      SSL_CTX_set_min_proto_version(made.get(), TLS1_3_VERSION);
      SSL_CTX_set_ciphersuites(made.get(), "TLS_AES_128_GCM_SHA256");
      SSL_CTX_set_keylog_callback(made.get(), learn);
      // Whoever connects again knows the secret of another channel.
      SSL_CTX_set_num_tickets(made.get(), 0);
      SSL_CTX_set_session_cache_mode(made.get(), SSL_SESS_CACHE_OFF);
      return made;
    }();
    return shared.get();
  }

  static const BIO_METHOD* method() {
    static BIO_METHOD* const shared = [] {
      BIO_METHOD* made = checked(BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "gathered"));
      BIO_meth_set_read_ex(made, take);
      BIO_meth_set_write_ex(made, gather);
      BIO_meth_set_ctrl(made, [](BIO*, int command, long, void*) -> long { return command == BIO_CTRL_FLUSH ? 1 : 0; });
      return made;
    }();
    return shared;
  }

  static Session& of(const SSL* ssl) { return *static_cast<Session*>(SSL_get_app_data(ssl)); }

  static int take(BIO* bio, char* to, size_t wanted, size_t* read) {
    Session& self = *static_cast<Session*>(BIO_get_data(bio));
    BIO_clear_retry_flags(bio);
    *read = std::min(wanted, self.came_ - self.taken_);
    if (*read == 0) BIO_set_retry_read(bio);
    std::memcpy(to, self.in_.get() + self.taken_, *read);
    self.taken_ += *read;
    return *read > 0 ? 1 : 0;
  }

  static int gather(BIO* bio, const char* from, size_t length, size_t* written) {
    Session& self = *static_cast<Session*>(BIO_get_data(bio));
    BIO_clear_retry_flags(bio);
    if (length > out_bytes - self.gathered_) return 0;
    std::memcpy(self.out_.get() + self.gathered_, from, length);
    self.gathered_ += length;
    *written = length;
    return 1;
  }

  /** OpenSSL tells the secrets of both directions in the lines of a key log: label, random number of the client, secret. */
  static void learn(const SSL* ssl, const char* text) {
    const std::string_view line(text);
    for (const auto& [label, secret] : {std::pair("CLIENT_TRAFFIC_SECRET_0 ", &Session::client_secret_),
                                        std::pair("SERVER_TRAFFIC_SECRET_0 ", &Session::server_secret_)}) {
      if (line.starts_with(label)) of(ssl).*secret = secret_in(line.substr(line.rfind(' ') + 1));
    }
  }

  static std::optional<Secret> secret_in(std::string_view digits) {
    Secret secret;
    if (digits.size() != 2 * secret.size()) return std::nullopt;
    for (size_t i = 0; i < secret.size(); ++i) std::from_chars(&digits[2 * i], &digits[2 * i] + 2, secret[i], 16);
    return secret;
  }

  static void forget(std::optional<Secret>& secret) {
    if (secret) OPENSSL_cleanse(secret->data(), secret->size());
    secret.reset();
  }

  static SSL_SESSION* session_of(SSL* ssl, const Secret& secret) {
    SSL_SESSION* session = SSL_SESSION_new();
    if (session == nullptr) return nullptr;
    const bool good = SSL_SESSION_set1_master_key(session, secret.data(), secret.size()) == 1 &&
                      SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, cipher_id)) == 1 &&
                      SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1;
    if (good) return session;
    SSL_SESSION_free(session);
    return nullptr;
  }

  static int offer_secret(SSL* ssl, const EVP_MD*, const unsigned char** identity, size_t* length, SSL_SESSION** session) {
    Session& self = of(ssl);
    *identity = reinterpret_cast<const unsigned char*>(&self.channel_);
    *length = sizeof(self.channel_);
    const auto secret = self.secret_of_(self.channel_);
    *session = secret ? session_of(ssl, *secret) : nullptr;
    return *session ? 1 : 0;
  }

  /** Without a session the handshake fails: there is no certificate. */
  static int find_secret(SSL* ssl, const unsigned char* identity, size_t length, SSL_SESSION** session) {
    Session& self = of(ssl);
    *session = nullptr;
    if (length != sizeof(self.channel_)) return 1;
    std::memcpy(&self.channel_, identity, length);
    const auto secret = self.secret_of_(self.channel_);
    if (secret) *session = session_of(ssl, *secret);
    return 1;
  }

  ssize_t broken() {
    ERR_clear_error();
    errno = EPROTO;
    return -1;
  }

  const int socket_;
  const bool connects_;
  uint64_t channel_;
  SecretOf secret_of_;
  const uint64_t records_a_key_;
  /** Null when the handshake is over. From then on records are protected here, so that rows are not copied on their way. */
  Connection handshake_;
  std::optional<Secret> client_secret_, server_secret_;
  std::optional<RecordCipher> sealer_, opener_;
  /** Records that brought no rows since one that did. */
  int without_rows_ = 0;
  /** The peer wants a new key for what goes there. */
  bool renewal_asked_ = false;
  /** Of the `came_` bytes that have come, `taken_` are done with; of the `gathered_` bytes that go, `sent_` are with the system. */
  const std::unique_ptr<unsigned char[]> in_{new unsigned char[gathered_bytes]};
  const std::unique_ptr<unsigned char[]> out_{new unsigned char[out_bytes]};
  size_t came_ = 0, taken_ = 0, gathered_ = 0, sent_ = 0;
  /** What is left of a record, decrypted. */
  std::span<const unsigned char> rest_;
  std::array<unsigned char, RecordCipher::content_bytes_max> rest_buffer_;
};

}  // namespace

bool can_encrypt() { return true; }

std::unique_ptr<TlsSession> TlsSession::connecting(int socket, uint64_t channel, const Secret& secret, uint64_t records_a_key) {
  return std::make_unique<Session>(socket, true, channel, [secret](uint64_t) { return std::optional(secret); }, records_a_key);
}

std::unique_ptr<TlsSession> TlsSession::accepting(int socket, SecretOf secret_of, uint64_t records_a_key) {
  return std::make_unique<Session>(socket, false, 0, std::move(secret_of), records_a_key);
}

}  // namespace switchyard::ucx
