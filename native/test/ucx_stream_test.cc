// Streams between fabrics that reach each other by TCP alone, and strangers that connect to where a fabric listens.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>
#include <set>
#include <thread>

#include "ucx/wire.h"
#include "ucx_support.h"

namespace switchyard::ucx {
namespace {

/** UCX reads the environment when its first context is made. */
class OverTcp : public testing::Environment {
  void SetUp() override {
    setenv("UCX_TLS", "tcp,self", 1);
    setenv("UCX_NET_DEVICES", "lo", 1);
  }
};
const auto* const over_tcp = testing::AddGlobalTestEnvironment(new OverTcp);

/** Ports that this process listens on. */
std::set<uint16_t> listening() {
  std::set<uint16_t> ports;
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    int accepts = 0;
    socklen_t length = sizeof(accepts);
    if (getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &length) != 0 || accepts == 0) continue;
    sockaddr_in address{};
    length = sizeof(address);
    if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) == 0) ports.insert(ntohs(address.sin_port));
  }
  return ports;
}

/** Two fabrics with a stream between them. */
struct Streaming {
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  TestFabric left{arena}, right{arena};
  uint64_t from = 0, to = 0;
  /** Where one of them listens for streams. */
  uint16_t port = 0;
  const std::optional<Secret> secret;

  explicit Streaming(std::optional<Secret> secret = {}) : secret(secret) {
    const auto before = listening();
    const ChannelLimits limits{.message_bytes_max = message_bytes_max, .secret = secret};
    from = left.open(key_of(1), limits, left_inbox.events());
    to = right.open(key_of(1), limits, right_inbox.events());
    Completion one, two;
    left.connect(from, right.address(), to, one.callback());
    right.connect(to, left.address(), from, two.callback());
    EXPECT_FALSE(one.wait());
    EXPECT_FALSE(two.wait());
    for (int i = 0; i < 500 && !(streams(left, from) && streams(right, to)); ++i) std::this_thread::sleep_for(2ms);
    EXPECT_EQ(left.transports(from), secret ? "tls tcp" : "stream tcp");
    EXPECT_EQ(right.transports(to), secret ? "tls tcp" : "stream tcp");
    for (const uint16_t now : listening()) {
      if (!before.contains(now)) port = now;
    }
  }
  ~Streaming() {
    left_inbox.take();
    right_inbox.take();
  }

  static bool streams(Fabric& fabric, uint64_t channel) { return fabric.transports(channel) != "tcp"; }

  void expect_unharmed() {
    Completion sent;
    left.send(from, message_of(arena, 300'000, 70, 3), sent.callback());
    ASSERT_FALSE(sent.wait());
    ASSERT_TRUE(right_inbox.wait_messages(1));
    const auto messages = right_inbox.take();
    ASSERT_EQ(messages.size(), 1u);
    expect_content(messages[0], 300'000, 70, 3);
    EXPECT_FALSE(left_inbox.wait_failure(1ms));
    EXPECT_FALSE(right_inbox.wait_failure(1ms));
  }

  uint64_t refused() const { return left.stats().messages_refused + right.stats().messages_refused; }
  void expect_refused(uint64_t count) {
    for (int i = 0; i < 500 && refused() < count; ++i) std::this_thread::sleep_for(5ms);
    EXPECT_EQ(refused(), count);
  }
};

/** A plain TCP connection to a port of this machine. */
class Socket {
 public:
  explicit Socket(uint16_t port) : descriptor_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(descriptor_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const timeval limit{5, 0};
    setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  }
  ~Socket() { ::close(descriptor_); }
  Socket(Socket&& other) : descriptor_(std::exchange(other.descriptor_, -1)) {}

  int descriptor() const { return descriptor_; }
  void send(const void* data, size_t size) const {
    ASSERT_EQ(::send(descriptor_, data, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
  }
  void send(const WireHeader& header) const { send(&header, sizeof(header)); }
  bool receive(WireHeader& header) const {
    return recv(descriptor_, &header, sizeof(header), MSG_WAITALL) == static_cast<ssize_t>(sizeof(header));
  }
  /** The other end has closed it. */
  bool ended() const {
    char byte;
    const ssize_t got = recv(descriptor_, &byte, 1, 0);
    return got == 0 || (got < 0 && errno == ECONNRESET);
  }

 private:
  int descriptor_;
};

/** A channel of the fabric that listens, whose peer is a plain socket that knows its key. */
struct Impostor {
  Streaming& around;
  Inbox inbox;
  Fabric& fabric;
  uint64_t channel;
  Socket socket{around.port};

  /** Which of the two listens is their choice: the one that does not closes the connection of the wrong channel. */
  Impostor(Streaming& around, Fabric& fabric, Fabric& other)
      : around(around), fabric(fabric), channel(fabric.open(key_of(7), {100'000}, inbox.events())) {
    Completion connected;
    fabric.connect(channel, other.address(), 999, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  ~Impostor() { fabric.close(channel, [] {}); }

  WireHeader header(Kind kind, uint64_t row_bytes = 0, uint64_t meta_bytes = 0) const {
    return {.kind = kind, .channel = channel, .row_bytes = row_bytes, .meta_bytes = meta_bytes, .key = key_of(7)};
  }
  bool adopted() const {
    socket.send(header(Kind::stream_hello));
    WireHeader answer;
    return socket.receive(answer) && answer.kind == Kind::stream_ready && answer.channel == 999;
  }
};

/** Calls `test` with an impostor whose stream was accepted. */
void with_impostor(const std::function<void(Impostor&)>& test) {
  Streaming streaming;
  for (const bool left : {true, false}) {
    Impostor impostor(streaming, left ? streaming.left : streaming.right, left ? streaming.right : streaming.left);
    if (!impostor.adopted()) continue;
    test(impostor);
    streaming.expect_unharmed();
    return;
  }
  FAIL() << "neither fabric accepted the stream";
}

constexpr Secret secret_of_tests{1, 2, 3};

/** Streams as they are, and encrypted ones where the build can make them. */
class UcxStreams : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (GetParam() && !can_encrypt()) GTEST_SKIP() << "built without OpenSSL";
  }
  std::optional<Secret> secret() const { return GetParam() ? std::optional(secret_of_tests) : std::nullopt; }
};
INSTANTIATE_TEST_SUITE_P(UcxStream, UcxStreams, testing::Bool());

TEST_P(UcxStreams, MessagesOfBothEndsAreReadIntoTheirSlabs) {
  Streaming streaming(secret());
  for (unsigned i = 0; i < 20; ++i) {
    const size_t row_bytes = i % 3 == 0 ? 1000 : 100'000 * i;
    Completion there, back;
    streaming.left.send(streaming.from, message_of(streaming.arena, row_bytes, 33, i), there.callback());
    streaming.right.send(streaming.to, message_of(streaming.arena, row_bytes, 44, i + 1), back.callback());
    ASSERT_FALSE(there.wait());
    ASSERT_FALSE(back.wait());
    ASSERT_TRUE(streaming.right_inbox.wait_messages(1));
    ASSERT_TRUE(streaming.left_inbox.wait_messages(1));
    const auto right = streaming.right_inbox.take(), left = streaming.left_inbox.take();
    expect_content(right[0], row_bytes, 33, i);
    expect_content(left[0], row_bytes, 44, i + 1);
  }
  for (const Fabric* fabric : {&streaming.left, &streaming.right}) {
    EXPECT_GT(fabric->stats().bytes_streamed, 10'000'000u);
    EXPECT_LT(fabric->stats().bytes_copied, 10'000u);
  }
}

TEST(UcxStream, StrangersAreRefusedAndCounted) {
  Streaming streaming;
  std::mt19937_64 random(20240501);
  uint64_t refused = 0;
  for (const size_t size : {sizeof(WireHeader), size_t{57}, size_t{5000}}) {
    std::vector<uint8_t> garbage(size);
    for (uint8_t& byte : garbage) byte = static_cast<uint8_t>(random());
    const Socket socket(streaming.port);
    socket.send(garbage.data(), garbage.size());
    EXPECT_TRUE(socket.ended());
    streaming.expect_refused(++refused);
  }
  const Socket wrong_key(streaming.port);
  for (const uint64_t channel : {streaming.from, streaming.to}) {
    WireHeader hello{.kind = Kind::stream_hello, .channel = channel, .key = key_of(2)};
    const Socket socket(streaming.port);
    socket.send(hello);
    EXPECT_TRUE(socket.ended());
    streaming.expect_refused(++refused);
  }
  streaming.expect_unharmed();
}

TEST(UcxStream, SilentStrangersMakeWayForNewOnes) {
  Streaming streaming;
  std::vector<Socket> silent;
  for (int i = 0; i < 100; ++i) {
    silent.emplace_back(streaming.port);
    if (i % 2) silent.back().send("half a header", 13);
  }
  streaming.expect_refused(36);
  for (int i = 0; i < 36; ++i) EXPECT_TRUE(silent[i].ended()) << i;
  streaming.expect_unharmed();
}

TEST(UcxStream, AMessageMayArriveInPiecesOfAnyLength) {
  with_impostor([](Impostor& impostor) {
    const Message message = message_of(impostor.around.arena, 50'000, 123, 5);
    const auto header = impostor.header(Kind::message, 50'000, 123);
    std::vector<uint8_t> bytes(sizeof(header) + 50'123);
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(bytes.data() + sizeof(header), message.slab->data(), 50'123);
    for (size_t at = 0, piece = 1; at < bytes.size(); at += piece, piece = piece * 3 % 4001 + 1) {
      impostor.socket.send(bytes.data() + at, std::min(piece, bytes.size() - at));
      std::this_thread::sleep_for(100us);
    }
    ASSERT_TRUE(impostor.inbox.wait_messages(1));
    const auto arrived = impostor.inbox.take();
    expect_content(arrived[0], 50'000, 123, 5);
  });
}

TEST(UcxStream, AStreamThatEndsWithinAMessageFailsItsChannelAndGivesTheMemoryBack) {
  with_impostor([](Impostor& impostor) {
    impostor.socket.send(impostor.header(Kind::message, 90'000, 10));
    impostor.socket.send("the first bytes", 15);
    for (int i = 0; i < 500 && impostor.around.arena.stats().slabs == 0; ++i) std::this_thread::sleep_for(2ms);
    EXPECT_EQ(impostor.around.arena.stats().slabs, 1u);
    { const Socket closed = std::move(impostor.socket); }
    const auto failure = impostor.inbox.wait_failure(5s);
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->code, Code::link_lost);
    for (int i = 0; i < 500 && impostor.around.arena.stats().slabs > 0; ++i) std::this_thread::sleep_for(2ms);
    EXPECT_EQ(impostor.around.arena.stats().slabs, 0u);
  });
}

/** Kind, bytes of rows and of metadata. */
class StreamHeaders : public testing::TestWithParam<std::tuple<uint32_t, uint64_t, uint64_t>> {};

TEST_P(StreamHeaders, WhatIsNotAllowedFailsTheChannelBeforeMemoryIsTaken) {
  with_impostor([](Impostor& impostor) {
    const auto [kind, row_bytes, meta_bytes] = GetParam();
    impostor.socket.send(impostor.header(static_cast<Kind>(kind), row_bytes, meta_bytes));
    const auto failure = impostor.inbox.wait_failure(5s);
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->code, Code::invalid_argument) << failure->what();
    EXPECT_TRUE(impostor.socket.ended());
    EXPECT_EQ(impostor.around.arena.stats().slabs, 0u);
  });
}

// Messages over the limit, empty, and of a sum that overflows; kinds that have no place on a stream; a second hello or answer.
INSTANTIATE_TEST_SUITE_P(UcxStream, StreamHeaders,
                         testing::Values(std::tuple{1u, 100'000, 1}, std::tuple{1u, 0, 0}, std::tuple{1u, ~0ull, 2},
                                         std::tuple{1u, 1ull << 40, 5}, std::tuple{5u, 0, 0}, std::tuple{7u, 0, 0},
                                         std::tuple{77u, 10, 10}, std::tuple{9u, 0, 0}, std::tuple{10u, 0, 0}));

TEST_P(UcxStreams, WhatWasSentBeforeAnEndClosesArrives) {
  for (int round = 0; round < 20; ++round) {
    Streaming streaming(secret());
    constexpr size_t count = 12;
    for (size_t i = 0; i < count; ++i) {
      streaming.left.send(streaming.from, message_of(streaming.arena, 1 << 20, 16, i), [](auto) {});
    }
    streaming.left.close(streaming.from, [] {});
    ASSERT_TRUE(streaming.right_inbox.wait_messages(count));
    const auto messages = streaming.right_inbox.take();
    for (size_t i = 0; i < count; ++i) expect_content(messages[i], 1 << 20, 16, i);
    EXPECT_FALSE(streaming.right_inbox.wait_failure(1ms));
    streaming.right.close(streaming.to, [] {});
  }
}

/** A channel between two fabrics, each end with a secret of its own choice. */
struct Unequal {
  SlabArena arena{1u << 28};
  Inbox left_inbox, right_inbox;
  TestFabric left{arena}, right{arena};
  uint64_t from, to;

  Unequal(std::optional<Secret> left_secret, std::optional<Secret> right_secret)
      : from(left.open(key_of(1), {.message_bytes_max = message_bytes_max, .secret = left_secret}, left_inbox.events())),
        to(right.open(key_of(1), {.message_bytes_max = message_bytes_max, .secret = right_secret}, right_inbox.events())) {
    Completion one, two;
    left.connect(from, right.address(), to, one.callback());
    right.connect(to, left.address(), from, two.callback());
    EXPECT_FALSE(one.wait());
    EXPECT_FALSE(two.wait());
  }
};

TEST(UcxStream, WhoHasAnotherSecretGetsNothing) {
  if (!can_encrypt()) GTEST_SKIP() << "built without OpenSSL";
  Unequal ends(secret_of_tests, Secret{9});
  Completion sent;
  ends.left.send(ends.from, message_of(ends.arena, 1000, 10, 1), sent.callback());
  // The end that connects learns that the other does not have its secret.
  std::optional<Error> failure;
  for (int i = 0; i < 500 && !failure; ++i) {
    failure = ends.left_inbox.wait_failure(5ms);
    if (!failure) failure = ends.right_inbox.wait_failure(5ms);
  }
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::link_lost);
  ends.left.close(ends.from, [] {}, 0ms);
  EXPECT_TRUE(sent.wait());
  EXPECT_FALSE(ends.right_inbox.wait_messages(1, 1ms));
}

TEST(UcxStream, WhatComesUnencryptedToAChannelWithASecretIsRefused) {
  if (!can_encrypt()) GTEST_SKIP() << "built without OpenSSL";
  Unequal ends(std::nullopt, secret_of_tests);
  Completion sent;
  ends.left.send(ends.from, message_of(ends.arena, 1000, 10, 1), sent.callback());
  EXPECT_FALSE(sent.wait());
  for (int i = 0; i < 500 && ends.right.stats().messages_refused == 0; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_GE(ends.right.stats().messages_refused, 1u);
  EXPECT_FALSE(ends.right_inbox.wait_messages(1, 1ms));
}

TEST(UcxStream, StrangersAtAnEncryptedPortHarmNobody) {
  if (!can_encrypt()) GTEST_SKIP() << "built without OpenSSL";
  Streaming streaming(secret_of_tests);
  for (const size_t size : {size_t{1}, sizeof(WireHeader), size_t{20'000}}) {
    const std::vector<char> garbage(size, 'x');
    const Socket socket(streaming.port);
    ::send(socket.descriptor(), garbage.data(), size, MSG_NOSIGNAL);
    shutdown(socket.descriptor(), SHUT_WR);
    char answer[64];
    while (recv(socket.descriptor(), answer, sizeof(answer), 0) > 0) {
    }
  }
  streaming.expect_unharmed();
}

}  // namespace
}  // namespace switchyard::ucx
