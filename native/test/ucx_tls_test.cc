// Encrypted sockets: beside OpenSSL at the other end, with keys that are renewed, and with bytes that are not genuine.
#include "ucx/tls.h"

#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "ucx/tls_records.h"

namespace switchyard::ucx {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr uint64_t channel = 7;
constexpr Secret secret{1, 2, 3};

Bytes content(size_t size) {
  Bytes bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<unsigned char>(i * 31 + i / 251);
  return bytes;
}

/** Two ends of a connection; reading from one does not wait. */
struct Sockets {
  int ours = -1, theirs = -1;
  Sockets() {
    int both[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, both), 0);
    ours = both[0];
    theirs = both[1];
  }
  ~Sockets() {
    ::close(ours);
    ::close(theirs);
  }
};

std::unique_ptr<TlsSession> session(int socket, bool connects, uint64_t records_a_key = records_a_key_max) {
  if (connects) return TlsSession::connecting(socket, channel, secret, records_a_key);
  const auto secret_of = [](uint64_t of) { return of == channel ? std::optional(secret) : std::nullopt; };
  return TlsSession::accepting(socket, secret_of, records_a_key);
}

/** An end that sends and receives what it can at a time. */
class End {
 public:
  virtual ~End() = default;
  virtual ssize_t receive(void* to, size_t wanted) = 0;
  virtual ssize_t send(const void* from, size_t length) = 0;
  virtual void flush() {}
};

class Own : public End {
 public:
  Own(int socket, bool connects, uint64_t records_a_key) : tls_(session(socket, connects, records_a_key)) {}
  ssize_t receive(void* to, size_t wanted) override { return tls_->receive(to, wanted, true); }
  ssize_t send(const void* from, size_t length) override { return tls_->send(from, length); }
  void flush() override { EXPECT_TRUE(tls_->flush()); }

 private:
  const std::unique_ptr<TlsSession> tls_;
};

class OpenSsl : public End {
 public:
  OpenSsl(int socket, bool connects) : context_(SSL_CTX_new(TLS_method()), SSL_CTX_free), ssl_(nullptr, SSL_free) {
    SSL_CTX_set_ciphersuites(context_.get(), "TLS_AES_128_GCM_SHA256");
    SSL_CTX_set_num_tickets(context_.get(), 0);
    SSL_CTX_set_keylog_callback(context_.get(), [](const SSL* ssl, const char* text) {
      const std::string_view line(text);
      if (!line.starts_with("CLIENT_TRAFFIC_SECRET_0")) return;
      Secret& secret = static_cast<OpenSsl*>(SSL_get_app_data(ssl))->traffic_secret_;
      const std::string_view digits = line.substr(line.size() - 2 * secret.size());
      for (size_t i = 0; i < secret.size(); ++i) std::from_chars(&digits[2 * i], &digits[2 * i] + 2, secret[i], 16);
    });
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), socket);
    SSL_set_app_data(ssl_.get(), this);
    SSL_set_psk_use_session_callback(ssl_.get(), [](SSL* ssl, const EVP_MD*, const unsigned char** id, size_t* length, SSL_SESSION** made) {
      *id = reinterpret_cast<const unsigned char*>(&channel);
      *length = sizeof(channel);
      *made = session_of(ssl);
      return 1;
    });
    SSL_set_psk_find_session_callback(ssl_.get(), [](SSL* ssl, const unsigned char*, size_t, SSL_SESSION** made) {
      *made = session_of(ssl);
      return 1;
    });
    SSL_set_msg_callback(ssl_.get(), [](int sent, int, int type, const void* message, size_t, SSL*, void* self) {
      if (sent == 0 && type == SSL3_RT_HANDSHAKE && *static_cast<const unsigned char*>(message) == SSL3_MT_KEY_UPDATE) {
        static_cast<OpenSsl*>(self)->renewals += 1;
      }
    });
    SSL_set_msg_callback_arg(ssl_.get(), this);
    SSL_set_mode(ssl_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    connects ? SSL_set_connect_state(ssl_.get()) : SSL_set_accept_state(ssl_.get());
  }
  /** Of what goes from who connects. */
  const Secret& traffic_secret() const { return traffic_secret_; }
  /** Records are filled up to a multiple of so many bytes. */
  void pad(size_t bytes) { SSL_set_block_padding(ssl_.get(), bytes); }
  ssize_t receive(void* to, size_t wanted) override { return moved(SSL_read(ssl_.get(), to, static_cast<int>(wanted))); }
  ssize_t send(const void* from, size_t length) override { return moved(SSL_write(ssl_.get(), from, static_cast<int>(length))); }
  void ask_for_new_keys() { EXPECT_EQ(SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_REQUESTED), 1); }

  /** Messages that the keys of the other end have changed. */
  int renewals = 0;

 private:
  static SSL_SESSION* session_of(SSL* ssl) {
    const unsigned char cipher[] = {0x13, 0x01};
    SSL_SESSION* made = SSL_SESSION_new();
    SSL_SESSION_set1_master_key(made, secret.data(), secret.size());
    SSL_SESSION_set_cipher(made, SSL_CIPHER_find(ssl, cipher));
    SSL_SESSION_set_protocol_version(made, TLS1_3_VERSION);
    return made;
  }
  ssize_t moved(int result) {
    if (result > 0) return result;
    const int why = SSL_get_error(ssl_.get(), result);
    errno = why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE ? EAGAIN : EPROTO;
    return -1;
  }

  Secret traffic_secret_{};
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
};

/** Sends `bytes` from one end to the other, which takes at most `piece` at a time. */
void move(End& from, End& to, const Bytes& bytes, size_t piece) {
  Bytes got;
  Bytes room(piece);
  size_t sent = 0;
  while (got.size() < bytes.size()) {
    if (sent < bytes.size()) {
      const ssize_t moved = from.send(bytes.data() + sent, bytes.size() - sent);
      ASSERT_TRUE(moved > 0 || errno == EAGAIN) << sent;
      sent += std::max<ssize_t>(moved, 0);
    }
    from.flush();
    // The answers of a handshake come this way.
    unsigned char none;
    ASSERT_TRUE(from.receive(&none, 1) == -1 && errno == EAGAIN);
    for (;;) {
      const ssize_t moved = to.receive(room.data(), piece);
      ASSERT_TRUE(moved > 0 || (moved < 0 && errno == EAGAIN)) << got.size();
      if (moved < 0) break;
      got.insert(got.end(), room.begin(), room.begin() + moved);
    }
    to.flush();
  }
  EXPECT_EQ(got, bytes);
}

class TlsBesideOpenSsl : public testing::TestWithParam<bool> {};

TEST_P(TlsBesideOpenSsl, RowsArriveBothWaysAndKeysAreRenewed) {
  for (const uint64_t records_a_key : {records_a_key_max, uint64_t{3}, uint64_t{1}}) {
    Sockets sockets;
    const bool connects = GetParam();
    Own own(sockets.ours, connects, records_a_key);
    OpenSsl other(sockets.theirs, !connects);
    const Bytes rows = content(600'000);
    move(own, other, rows, 50'000);
    if (records_a_key == records_a_key_max) EXPECT_EQ(other.renewals, 0);
    else EXPECT_GE(other.renewals, 600'000 / 16'384 / static_cast<int>(records_a_key));
    move(other, own, rows, 50'000);
    // Shorter than a record.
    move(other, own, rows, 1'000);
    move(other, own, content(1), 1);
    const int before = other.renewals;
    other.ask_for_new_keys();
    move(other, own, rows, 20'000);
    move(own, other, rows, 20'000);
    EXPECT_GT(other.renewals, before);
    move(other, own, rows, 20'000);
  }
}

TEST_P(TlsBesideOpenSsl, PaddedRecordsAreTaken) {
  Sockets sockets;
  Own own(sockets.ours, GetParam(), records_a_key_max);
  OpenSsl other(sockets.theirs, !GetParam());
  other.pad(512);
  for (const size_t size : {size_t{1}, size_t{510}, size_t{511}, size_t{512}, size_t{100'000}}) {
    move(other, own, content(size), 70'000);
    move(other, own, Bytes(size), 100);
  }
}

INSTANTIATE_TEST_SUITE_P(EitherEnd, TlsBesideOpenSsl, testing::Bool(),
                         [](const auto& connects) { return connects.param ? "Connects" : "Accepts"; });

/** Two ends whose bytes pass through here once they have shaken hands. */
struct Wire {
  Sockets left, right;
  std::unique_ptr<TlsSession> from = session(left.ours, true), to = session(right.ours, false);

  Wire() {
    for (int turn = 0; turn < 100 && !(from->established() && to->established()); ++turn) {
      unsigned char none;
      from->receive(&none, 1, true);
      pass(left.theirs, right.theirs);
      to->receive(&none, 1, true);
      pass(right.theirs, left.theirs);
    }
    EXPECT_TRUE(from->established() && to->established());
    EXPECT_EQ(to->channel(), channel);
  }
  static Bytes take(int socket) {
    Bytes bytes(1 << 20);
    const ssize_t came = ::recv(socket, bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(std::max<ssize_t>(came, 0));
    return bytes;
  }
  static void give(int socket, const Bytes& bytes) {
    EXPECT_EQ(::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  static void pass(int one, int other) {
    const Bytes bytes = take(one);
    if (!bytes.empty()) give(other, bytes);
  }
  Bytes records_of(const Bytes& rows) {
    EXPECT_EQ(from->send(rows.data(), rows.size()), static_cast<ssize_t>(rows.size()));
    EXPECT_TRUE(from->flush());
    return take(left.theirs);
  }
  /** What receiving ends with after the bytes of whole records before. */
  void expect_broken(const Bytes& records) {
    give(right.theirs, records);
    Bytes room(100'000);
    ssize_t moved = 0;
    do moved = to->receive(room.data(), room.size(), true);
    while (moved > 0);
    EXPECT_EQ(moved, -1);
    EXPECT_EQ(errno, EPROTO);
  }
};

TEST(Tls, NothingThatWasChangedOnTheWayIsTaken) {
  const Bytes rows = content(1000);
  const size_t record = 5 + rows.size() + 17;
  // Kind, version, length, first and last byte of the rows, their type, the tag.
  for (const size_t at : {size_t{0}, size_t{1}, size_t{5}, size_t{1004}, size_t{1005}, record - 1}) {
    Wire wire;
    Bytes records = wire.records_of(rows);
    ASSERT_EQ(records.size(), record);
    records[at] ^= 1;
    wire.expect_broken(records);
  }
}

TEST(Tls, NoRecordIsTakenTwiceLeftOutOrTooLong) {
  const Bytes rows = content(1000);
  {
    Wire wire;
    const Bytes once = wire.records_of(rows);
    Bytes twice = once;
    twice.insert(twice.end(), once.begin(), once.end());
    wire.expect_broken(twice);
  }
  {
    Wire wire;
    wire.records_of(rows);
    wire.expect_broken(wire.records_of(rows));
  }
  for (const size_t length : {size_t{0}, size_t{16}, size_t{16 * 1024 + 18}, size_t{0xffff}}) {
    Wire wire;
    Bytes records = wire.records_of(rows);
    records[3] = static_cast<unsigned char>(length >> 8);
    records[4] = static_cast<unsigned char>(length);
    wire.expect_broken(records);
  }
}

TEST(Tls, AServerThatShowsACertificateAndHasNoSecretIsRefused) {
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), X509_free);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), 0);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key.get());
  ASSERT_GT(X509_sign(certificate.get(), key.get(), EVP_sha256()), 0);
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  ASSERT_EQ(SSL_CTX_use_certificate(context.get(), certificate.get()), 1);
  ASSERT_EQ(SSL_CTX_use_PrivateKey(context.get(), key.get()), 1);
  Sockets sockets;
  const std::unique_ptr<SSL, decltype(&SSL_free)> server(SSL_new(context.get()), SSL_free);
  SSL_set_fd(server.get(), sockets.theirs);
  const auto client = session(sockets.ours, true);
  unsigned char byte = 1;
  ssize_t got = -1;
  for (errno = EAGAIN; got < 0 && errno == EAGAIN;) {
    client->send(&byte, 1);
    SSL_accept(server.get());
    got = client->receive(&byte, 1, true);
    ASSERT_FALSE(client->established());
  }
  EXPECT_EQ(errno, EPROTO);
  EXPECT_LE(SSL_read(server.get(), &byte, 1), 0);
}

TEST(Tls, RecordsWithoutRowsAreNotTakenWithoutEnd) {
  for (const bool renewing : {false, true}) {
    Sockets sockets;
    OpenSsl other(sockets.theirs, true);
    const auto own = session(sockets.ours, false);
    unsigned char byte = 1;
    while (other.send(&byte, 1) < 0 || own->receive(&byte, 1, true) < 0) own->receive(&byte, 1, true);
    ASSERT_TRUE(own->established());
    // What goes from there has used one record of the key.
    RecordCipher sealer(other.traffic_secret(), true);
    sealer.seal(ContentType::application_data, &byte, 1, std::array<unsigned char, 64>().data());
    errno = 0;
    for (int i = 0; i < 100 && errno != EPROTO; ++i) {
      constexpr unsigned char key_update[] = {24, 0, 0, 1, 0};
      unsigned char record[64];
      const size_t length = renewing ? sizeof(key_update) : 0;
      sealer.seal(renewing ? ContentType::handshake : ContentType::application_data, key_update, length, record);
      if (renewing) sealer.renew();
      ASSERT_GT(::send(sockets.theirs, record, RecordCipher::header_bytes + length + RecordCipher::trailer_bytes, 0), 0);
      EXPECT_EQ(own->receive(&byte, 1, true), -1);
    }
    EXPECT_EQ(errno, EPROTO);
  }
}

TEST(Tls, RowsThatCameWithTheLastOfTheHandshakeAreTaken) {
  Sockets left, right;
  const auto from = session(left.ours, true), to = session(right.ours, false);
  unsigned char none;
  const Bytes rows = content(5000);
  from->send(rows.data(), rows.size());
  Wire::pass(left.theirs, right.theirs);
  to->receive(&none, 1, true);
  Wire::pass(right.theirs, left.theirs);
  from->receive(&none, 1, true);
  ASSERT_EQ(from->send(rows.data(), rows.size()), 5000);
  ASSERT_TRUE(from->flush());
  // The end of the handshake and the rows at once, byte by byte.
  Bytes got;
  for (const unsigned char byte : Wire::take(left.theirs)) {
    Wire::give(right.theirs, {byte});
    Bytes room(6000);
    const ssize_t moved = to->receive(room.data(), room.size(), true);
    if (moved > 0) got.insert(got.end(), room.begin(), room.begin() + moved);
    else ASSERT_EQ(errno, EAGAIN);
  }
  EXPECT_EQ(got, rows);
}

}  // namespace
}  // namespace switchyard::ucx
