// Two fabrics exchange messages in one process and across processes. UCX_TLS in the environment narrows the transports:
// `UCX_TLS=tcp ./ucx_fabric_test`.
#include "ucx/fabric.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <future>
#include <mutex>
#include <numeric>
#include <thread>

namespace switchyard::ucx {
namespace {

using namespace std::chrono_literals;

constexpr size_t message_bytes_max = 16 << 20;

Key key_of(uint8_t seed) {
  Key key;
  std::iota(key.begin(), key.end(), seed);
  return key;
}

/** What happened on one channel, for a test thread to wait on. */
class Inbox {
 public:
  ChannelEvents events() {
    return {[this](Message message) { push(std::move(message)); }, [this](Error error) { fail(std::move(error)); }};
  }

  bool wait_messages(size_t count, std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, limit, [&] { return messages_.size() >= count; });
  }

  std::optional<Error> wait_failure(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, limit, [&] { return failure_.has_value(); });
    return failure_;
  }

  std::vector<Message> take() {
    std::lock_guard lock(mutex_);
    return std::move(messages_);
  }

 private:
  void push(Message message) {
    std::lock_guard lock(mutex_);
    messages_.push_back(std::move(message));
    changed_.notify_all();
  }
  void fail(Error error) {
    std::lock_guard lock(mutex_);
    failure_ = std::move(error);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Message> messages_;
  std::optional<Error> failure_;
};

/** Waits for one completion. */
class Completion {
 public:
  auto callback() {
    return [this](std::optional<Error> error) {
      std::lock_guard lock(mutex_);
      error_ = std::move(error);
      done_ = true;
      changed_.notify_all();
    };
  }
  std::optional<Error> wait(std::chrono::milliseconds limit = 10s) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, limit, [&] { return done_; })) << "no completion";
    return error_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::optional<Error> error_;
};

Message message_of(SlabArena& arena, size_t row_bytes, size_t meta_bytes, unsigned seed) {
  Message message{arena.allocate(row_bytes + meta_bytes), row_bytes, meta_bytes};
  auto* bytes = reinterpret_cast<uint8_t*>(message.slab->data());
  for (size_t i = 0; i < row_bytes + meta_bytes; ++i) bytes[i] = static_cast<uint8_t>(seed + i * 31 + (i >> 8));
  return message;
}

void expect_content(const Message& message, size_t row_bytes, size_t meta_bytes, unsigned seed) {
  ASSERT_EQ(message.row_bytes, row_bytes);
  ASSERT_EQ(message.meta_bytes, meta_bytes);
  const auto* bytes = reinterpret_cast<const uint8_t*>(message.slab->data());
  for (size_t i = 0; i < row_bytes + meta_bytes; ++i) {
    ASSERT_EQ(bytes[i], static_cast<uint8_t>(seed + i * 31 + (i >> 8))) << "byte " << i;
  }
}

struct Pair {
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  Fabric left{arena}, right{arena};
  uint64_t left_channel = left.open(key_of(1), {message_bytes_max}, left_inbox.events());
  uint64_t right_channel = right.open(key_of(1), {message_bytes_max}, right_inbox.events());

  Pair() {
    Completion one, two;
    left.connect(left_channel, right.address(), right_channel, one.callback());
    right.connect(right_channel, left.address(), left_channel, two.callback());
    EXPECT_FALSE(one.wait());
    EXPECT_FALSE(two.wait());
  }

  std::optional<Error> send(Message message) {
    Completion sent;
    left.send(left_channel, std::move(message), sent.callback());
    return sent.wait();
  }
};

class FabricSizes : public testing::TestWithParam<size_t> {};

TEST_P(FabricSizes, RowsAndMetadataArriveUnchanged) {
  Pair pair;
  const size_t row_bytes = GetParam();
  for (size_t meta_bytes : {size_t{1}, size_t{40}, size_t{20000}}) {
    ASSERT_FALSE(pair.send(message_of(pair.arena, row_bytes, meta_bytes, 7)));
    ASSERT_TRUE(pair.right_inbox.wait_messages(1));
    const auto messages = pair.right_inbox.take();
    ASSERT_EQ(messages.size(), 1u);
    expect_content(messages[0], row_bytes, meta_bytes, 7);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, FabricSizes,
                         testing::Values(0, 1, 64, 8191, 8192, 65536, 262144, 1 << 20, (8 << 20) + 3));

TEST(Fabric, ManyMessagesBothWaysAllArriveInOrder) {
  Pair pair;
  constexpr size_t count = 300;
  std::vector<Completion> sent(2 * count);
  for (size_t i = 0; i < count; ++i) {
    const size_t rows = (i * 7919) % 100000;
    pair.left.send(pair.left_channel, message_of(pair.arena, rows, 16, i), sent[2 * i].callback());
    pair.right.send(pair.right_channel, message_of(pair.arena, rows, 16, i), sent[2 * i + 1].callback());
  }
  for (auto& completion : sent) ASSERT_FALSE(completion.wait());
  for (Inbox* inbox : {&pair.left_inbox, &pair.right_inbox}) {
    ASSERT_TRUE(inbox->wait_messages(count));
    const auto messages = inbox->take();
    ASSERT_EQ(messages.size(), count);
    for (size_t i = 0; i < count; ++i) expect_content(messages[i], (i * 7919) % 100000, 16, i);
  }
}

TEST(Fabric, WrongKeyIsRefusedAndCounted) {
  SlabArena arena{1u << 30};
  Inbox inbox, intruder_inbox;
  Fabric right{arena}, left{arena};
  const uint64_t channel = right.open(key_of(1), {message_bytes_max}, inbox.events());
  const uint64_t intruder = left.open(key_of(2), {message_bytes_max}, intruder_inbox.events());
  Completion connected, sent;
  left.connect(intruder, right.address(), channel, connected.callback());
  ASSERT_FALSE(connected.wait());
  left.send(intruder, message_of(arena, 1 << 20, 16, 1), sent.callback());
  sent.wait();
  for (int i = 0; i < 200 && right.stats().messages_refused == 0; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(right.stats().messages_refused, 1u);
  EXPECT_EQ(right.stats().bytes_received, 0u);
  EXPECT_FALSE(inbox.wait_messages(1, 50ms));
}

TEST(Fabric, MessageOverTheLimitFailsTheChannelBeforeMemoryIsTaken) {
  SlabArena arena{1u << 30};
  Inbox inbox, sender_inbox;
  Fabric right{arena}, left{arena};
  const uint64_t channel = right.open(key_of(1), {1000}, inbox.events());
  const uint64_t sender = left.open(key_of(1), {1000}, sender_inbox.events());
  Completion connected, sent;
  left.connect(sender, right.address(), channel, connected.callback());
  ASSERT_FALSE(connected.wait());
  left.send(sender, message_of(arena, 4 << 20, 16, 1), sent.callback());
  const auto failure = inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::invalid_argument);
  EXPECT_NE(std::string(failure->what()).find("at most 1000"), std::string::npos) << failure->what();
  sent.wait();
  EXPECT_EQ(arena.stats().slabs, 0u);
}

TEST(Fabric, SendToAClosedChannelFailsAndSecondCloseIsHarmless) {
  Pair pair;
  for (int i = 0; i < 2; ++i) {
    std::promise<void> closed;
    pair.left.close(pair.left_channel, [&] { closed.set_value(); });
    ASSERT_EQ(closed.get_future().wait_for(5s), std::future_status::ready);
  }
  const auto error = pair.send(message_of(pair.arena, 100, 10, 1));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Code::link_lost);
}

TEST(Fabric, DestructionCompletesWhatIsInFlight) {
  std::vector<Completion> sent(64);
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  {
    Fabric right{arena}, left{arena};
    const uint64_t to = right.open(key_of(1), {message_bytes_max}, right_inbox.events());
    const uint64_t from = left.open(key_of(1), {message_bytes_max}, left_inbox.events());
    Completion one, two;
    left.connect(from, right.address(), to, one.callback());
    right.connect(to, left.address(), from, two.callback());
    ASSERT_FALSE(one.wait());
    ASSERT_FALSE(two.wait());
    for (auto& completion : sent) left.send(from, message_of(arena, 1 << 20, 16, 1), completion.callback());
  }
  for (auto& completion : sent) completion.wait(1ms);
  right_inbox.take();
  EXPECT_EQ(arena.stats().slabs, 0u);
}

TEST(Fabric, IdleThreadSleeps) {
  Pair pair;
  ASSERT_FALSE(pair.send(message_of(pair.arena, 1 << 20, 16, 1)));
  ASSERT_TRUE(pair.right_inbox.wait_messages(1));
  std::this_thread::sleep_for(200ms);
  timespec before{}, after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(1s);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double seconds = (after.tv_sec - before.tv_sec) + (after.tv_nsec - before.tv_nsec) * 1e-9;
  EXPECT_LT(seconds, 0.02) << "two idle fabrics used the processor";
}

/** A child process that holds the right end and echoes nothing; the parent kills it. */
struct Child {
  pid_t pid = -1;
  int socket = -1;

  Child() {
    int sockets[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    pid = fork();
    if (pid == 0) {
      ::close(sockets[0]);
      serve(sockets[1]);
      _exit(0);
    }
    ::close(sockets[1]);
    socket = sockets[0];
  }

  static void write_all(int socket, const void* data, size_t size) {
    if (::write(socket, data, size) != static_cast<ssize_t>(size)) _exit(2);
  }
  static void read_all(int socket, void* data, size_t size) {
    if (::recv(socket, data, size, MSG_WAITALL) != static_cast<ssize_t>(size)) _exit(2);
  }
  static void write_address(int socket, const std::vector<uint8_t>& address, uint64_t channel) {
    const uint64_t length = address.size();
    write_all(socket, &length, sizeof(length));
    write_all(socket, address.data(), address.size());
    write_all(socket, &channel, sizeof(channel));
  }
  static std::pair<std::vector<uint8_t>, uint64_t> read_address(int socket) {
    uint64_t length = 0, channel = 0;
    read_all(socket, &length, sizeof(length));
    std::vector<uint8_t> address(length);
    read_all(socket, address.data(), length);
    read_all(socket, &channel, sizeof(channel));
    return {address, channel};
  }

  static void serve(int socket) {
    SlabArena arena{1u << 30};
    Inbox inbox;
    Fabric fabric{arena};
    const uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());
    write_address(socket, fabric.address(), channel);
    const auto [address, peer] = read_address(socket);
    Completion connected;
    fabric.connect(channel, address, peer, connected.callback());
    char byte;
    while (::read(socket, &byte, 1) > 0) {
    }
  }
};

TEST(FabricProcess, KilledPeerFailsTheChannelAndEverySendWithinASecond) {
  Child child;
  SlabArena arena{1u << 30};
  Inbox inbox;
  std::vector<Completion> sent(32);
  Fabric fabric{arena};
  const uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());
  const auto [address, peer] = Child::read_address(child.socket);
  Child::write_address(child.socket, fabric.address(), channel);
  Completion connected;
  fabric.connect(channel, address, peer, connected.callback());
  ASSERT_FALSE(connected.wait());
  Completion first;
  fabric.send(channel, message_of(arena, 1 << 20, 16, 1), first.callback());
  ASSERT_FALSE(first.wait());

  for (size_t i = 0; i < sent.size(); ++i) {
    if (i == 4) {
      kill(child.pid, SIGKILL);
      waitpid(child.pid, nullptr, 0);  // A zombie still counts as alive for shared memory.
    }
    fabric.send(channel, message_of(arena, 4 << 20, 16, 1), sent[i].callback());
  }
  const auto failure = inbox.wait_failure(1500ms);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::link_lost);
  for (auto& completion : sent) completion.wait(1s);
  std::promise<void> closed;
  fabric.close(channel, [&] { closed.set_value(); });
  EXPECT_EQ(closed.get_future().wait_for(2s), std::future_status::ready);
  EXPECT_EQ(arena.stats().slabs, 0u);
  ::close(child.socket);
}

}  // namespace
}  // namespace switchyard::ucx
