#include "ucx/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "runtime/error.h"

namespace switchyard::ucx {
namespace {

/** What one system call moves of encrypted bytes: as much as the system holds of a stream. */
constexpr size_t gathered_bytes = 256 * 1024;
/** The longest record, and what OpenSSL may have read of one that is not complete. */
constexpr size_t record_bytes = 17 * 1024;
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
  Session(int socket, bool connects, uint64_t channel, SecretOf secret_of)
      : socket_(socket), connects_(connects), channel_(channel), secret_of_(std::move(secret_of)) {
    out_.reserve(2 * gathered_bytes + record_bytes);
    ssl_.reset(checked(SSL_new(context())));
    BIO* bio = checked(BIO_new(method()));
    BIO_set_data(bio, this);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
    SSL_set_app_data(ssl_.get(), this);
    if (connects) {
      SSL_set_psk_use_session_callback(ssl_.get(), offer_secret);
      SSL_set_connect_state(ssl_.get());
    } else {
      SSL_set_psk_find_session_callback(ssl_.get(), find_secret);
      SSL_set_accept_state(ssl_.get());
    }
  }

  ssize_t receive(void* to, size_t wanted, bool fetch) override {
    for (;;) {
      ERR_clear_error();
      size_t read = 0;
      const int good = SSL_read_ex(ssl_.get(), to, wanted, &read);
      if (!out_.empty() && !flush()) return -1;
      if (good == 1) return static_cast<ssize_t>(read);
      const int why = SSL_get_error(ssl_.get(), good);
      if (why == SSL_ERROR_ZERO_RETURN) return 0;
      if (why != SSL_ERROR_WANT_READ) return broken();
      if (!fetch) {
        errno = EAGAIN;
        return -1;
      }
      const ssize_t came = ::recv(socket_, in_.get(), gathered_bytes, MSG_DONTWAIT);
      if (came <= 0) return came;
      taken_ = 0;
      came_ = came;
    }
  }

  ssize_t send(const void* from, size_t length) override {
    if (out_.size() >= gathered_bytes && !flush()) return -1;
    if (out_.size() >= gathered_bytes) {
      errno = EAGAIN;
      return -1;
    }
    ERR_clear_error();
    size_t written = 0;
    const int good = SSL_write_ex(ssl_.get(), from, std::min(length, gathered_bytes), &written);
    if (good == 1) return static_cast<ssize_t>(written);
    if (SSL_get_error(ssl_.get(), good) != SSL_ERROR_WANT_READ) return broken();
    // What the handshake has to say does not wait for more.
    if (!flush()) return -1;
    errno = EAGAIN;
    return -1;
  }

  bool flush() override {
    while (!out_.empty()) {
      const ssize_t moved = ::send(socket_, out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (moved < 0 && errno == EINTR) continue;
      if (moved < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
      sent_ += moved;
      if (sent_ < out_.size()) continue;
      out_.clear();
      sent_ = 0;
    }
    return true;
  }

  bool unsent() const override { return !out_.empty(); }
  bool established() const override { return SSL_is_init_finished(ssl_.get()) == 1; }
  size_t held() const override { return came_ - taken_ + record_bytes; }
  uint64_t channel() const override { return !connects_ && established() ? channel_ : 0; }

 private:
  /** Of all connections; of what the process has of OpenSSL for streams. */
  static SSL_CTX* context() {
    static const Context shared = [] {
      Context made(checked(SSL_CTX_new(TLS_method())));
      SSL_CTX_set_min_proto_version(made.get(), TLS1_3_VERSION);
      SSL_CTX_set_ciphersuites(made.get(), "TLS_AES_128_GCM_SHA256");
      SSL_CTX_set_mode(made.get(), SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
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

  static Session& of(SSL* ssl) { return *static_cast<Session*>(SSL_get_app_data(ssl)); }

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
    self.out_.insert(self.out_.end(), from, from + length);
    *written = length;
    return 1;
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
  /** Of what has come, the first `came_` bytes, `taken_` are with OpenSSL; of what goes, `sent_` are with the system. */
  const std::unique_ptr<char[]> in_{new char[gathered_bytes]};
  std::vector<char> out_;
  size_t came_ = 0, taken_ = 0, sent_ = 0;
  Connection ssl_;
};

}  // namespace

bool can_encrypt() { return true; }

std::unique_ptr<TlsSession> TlsSession::connecting(int socket, uint64_t channel, const Secret& secret) {
  return std::make_unique<Session>(socket, true, channel, [secret](uint64_t) { return std::optional(secret); });
}

std::unique_ptr<TlsSession> TlsSession::accepting(int socket, SecretOf secret_of) {
  return std::make_unique<Session>(socket, false, 0, std::move(secret_of));
}

}  // namespace switchyard::ucx
