// A fabric in this process and one in a child, which is stopped or killed. `UCX_TLS=tcp ./ucx_process_test` narrows the
// transports.
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <future>
#include <thread>

#include "ucx/peer_memory.h"
#include "ucx_support.h"

namespace switchyard::ucx {
namespace {

/** A child process that holds the right end and, after each byte on its socket, sends back what has arrived. */
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
      if (byte == 'c') {
        fabric.close(channel, [] {});
        continue;
      }
      if (!inbox.wait_messages(1)) _exit(3);
      for (Message& message : inbox.take()) fabric.send(channel, std::move(message), [](auto) {});
    }
  }
};

/** The parent's end of a channel to a child. */
struct ToChild {
  Child child;
  SlabArena arena{1u << 30};
  Inbox inbox;
  Fabric fabric{arena};
  uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());

  ToChild() {
    const auto [address, peer] = Child::read_address(child.socket);
    Child::write_address(child.socket, fabric.address(), channel);
    Completion connected;
    fabric.connect(channel, address, peer, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  ~ToChild() {
    ::close(child.socket);
    kill(child.pid, SIGKILL);
    waitpid(child.pid, nullptr, 0);
  }

  std::optional<Error> send(Message message) {
    Completion sent;
    fabric.send(channel, std::move(message), sent.callback());
    return sent.wait();
  }

  /** Sends a message, has it sent back, and compares. */
  void echo(size_t row_bytes, size_t meta_bytes, unsigned seed) {
    ASSERT_FALSE(send(message_of(arena, row_bytes, meta_bytes, seed)));
    Child::write_all(child.socket, "e", 1);
    ASSERT_TRUE(inbox.wait_messages(1));
    const auto messages = inbox.take();
    ASSERT_EQ(messages.size(), 1u);
    expect_content(messages[0], row_bytes, meta_bytes, seed);
  }

  /** Until the processes have shown each other that they can read each other's memory. */
  void settle() {
    for (int i = 0; i < 200 && fabric.transports(channel).rfind("cma ", 0) != 0; ++i) std::this_thread::sleep_for(5ms);
  }
};

constexpr const char* no_reading = "UCX_TLS or this system keeps processes from reading each other";

/** Whether the system lets processes read each other, as a container may not. */
bool reading_is_allowed() {
  if (!peer_memory_allowed(std::getenv("UCX_TLS"))) return false;
  static const uint64_t value = 42;
  int done[2];
  if (pipe(done) != 0) return false;
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    (void)!::read(done[0], &byte, 1);
    _exit(0);
  }
  uint64_t copy = 0;
  const iovec local{&copy, sizeof(copy)}, remote{const_cast<uint64_t*>(&value), sizeof(value)};
  const bool allowed = process_vm_readv(child, &local, 1, &remote, 1, 0) == sizeof(copy);
  (void)!::write(done[1], "x", 1);
  waitpid(child, nullptr, 0);
  ::close(done[0]);
  ::close(done[1]);
  return allowed;
}

TEST(FabricProcess, LongMessagesAreReadFromThePeersMemoryAndShortOnesAreNot) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  ToChild to;
  to.echo(100, 10, 1);
  to.settle();
  EXPECT_EQ(to.fabric.transports(to.channel).rfind("cma ", 0), 0u) << to.fabric.transports(to.channel);
  const uint64_t before = to.fabric.stats().bytes_taken;
  to.echo(1000, 10, 2);
  EXPECT_EQ(to.fabric.stats().bytes_taken, before);
  for (size_t rows : {size_t{16384}, size_t{65536}, size_t{1} << 20, (size_t{8} << 20) + 3}) to.echo(rows, 100, 3);
  EXPECT_GE(to.fabric.stats().bytes_taken, before + 9 * (1u << 20));
  EXPECT_EQ(to.arena.stats().slabs, 0u);
}

TEST(FabricProcess, OffersThatAStoppedPeerDoesNotTakeEndWhenItGoesOnOrDies) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  for (const int end : {SIGCONT, SIGKILL}) {
    ToChild to;
    to.echo(100, 10, 1);
    to.settle();
    kill(to.child.pid, SIGSTOP);
    waitpid(to.child.pid, nullptr, WUNTRACED);  // It runs on until the signal has reached it.
    std::vector<Completion> sent(8);
    for (auto& completion : sent) {
      to.fabric.send(to.channel, message_of(to.arena, 1 << 20, 16, 1), completion.callback());
    }
    std::promise<void> closed;
    auto closing = closed.get_future();
    to.fabric.close(to.channel, [&] { closed.set_value(); });
    EXPECT_EQ(closing.wait_for(100ms), std::future_status::timeout) << "closed before its messages were taken";
    EXPECT_EQ(to.arena.stats().slabs, sent.size());
    kill(to.child.pid, end);
    if (end == SIGKILL) waitpid(to.child.pid, nullptr, 0);
    ASSERT_EQ(closing.wait_for(5s), std::future_status::ready);
    for (auto& completion : sent) EXPECT_EQ(completion.wait().has_value(), end == SIGKILL);
    EXPECT_EQ(to.arena.stats().slabs, 0u);
  }
}

TEST(FabricProcess, OffersToAPeerThatClosedTheChannelEndWithAnError) {
  ToChild to;
  to.echo(100, 10, 1);
  to.settle();
  Child::write_all(to.child.socket, "c", 1);
  std::optional<Error> error;
  for (int i = 0; i < 500 && !error; ++i) error = to.send(message_of(to.arena, 1 << 20, 16, 1));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->code, Code::link_lost);
  EXPECT_EQ(to.arena.stats().slabs, 0u);
}

TEST(PeerMemory, IsLeftOutWhereTheListOfTransportsLeavesItOut) {
  for (const char* list : {static_cast<const char*>(nullptr), "", "all", "cma", "tcp,cma", "shm,tcp", "sm", "^tcp"}) {
    EXPECT_TRUE(peer_memory_allowed(list)) << (list ? list : "unset");
  }
  for (const char* list : {"tcp", "tcp,self", "posix,sysv", "^cma", "^tcp,sm"}) {
    EXPECT_FALSE(peer_memory_allowed(list)) << list;
  }
}

TEST(PeerMemory, ReadsOnlyAProcessThatHoldsTheMark) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  static Mark mark;  // At the same address in the child.
  mark = random_mark();
  std::vector<uint8_t> secret(100000, 7);
  int done[2];
  ASSERT_EQ(pipe(done), 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    (void)!::read(done[0], &byte, 1);
    _exit(0);
  }
  const auto at = [](const void* pointer) { return reinterpret_cast<uint64_t>(pointer); };
  const Beacon beacon{child, at(mark.data())};
  EXPECT_FALSE(PeerMemory::open(beacon, random_mark())) << "another mark";
  EXPECT_FALSE(PeerMemory::open({getpid(), at(mark.data())}, mark)) << "this process itself";
  EXPECT_FALSE(PeerMemory::open({-1, at(mark.data())}, mark));
  EXPECT_FALSE(PeerMemory::open({child, 16}, mark)) << "an address that is not mapped";
  const auto memory = PeerMemory::open(beacon, mark);
  ASSERT_TRUE(memory);
  std::vector<uint8_t> copy(secret.size());
  EXPECT_TRUE(memory->read(at(secret.data()), copy.size(), copy.data()));
  EXPECT_EQ(copy, secret);
  EXPECT_FALSE(memory->read(16, copy.size(), copy.data())) << "an address that is not mapped";
  (void)!::write(done[1], "x", 1);
  waitpid(child, nullptr, 0);
  EXPECT_FALSE(memory->read(at(secret.data()), copy.size(), copy.data())) << "a process that has ended";
  ::close(done[0]);
  ::close(done[1]);
}

TEST(FabricProcess, KilledPeerFailsTheChannelAndEverySendWithinASecond) {
  ToChild to;
  to.echo(1 << 20, 16, 1);
  std::vector<Completion> sent(32);
  for (size_t i = 0; i < sent.size(); ++i) {
    if (i == 4) {
      kill(to.child.pid, SIGKILL);
      waitpid(to.child.pid, nullptr, 0);  // A zombie still counts as alive for shared memory.
    }
    to.fabric.send(to.channel, message_of(to.arena, 4 << 20, 16, 1), sent[i].callback());
  }
  const auto failure = to.inbox.wait_failure(1500ms);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::link_lost);
  for (auto& completion : sent) completion.wait(1s);
  std::promise<void> closed;
  to.fabric.close(to.channel, [&] { closed.set_value(); });
  EXPECT_EQ(closed.get_future().wait_for(2s), std::future_status::ready);
  EXPECT_EQ(to.arena.stats().slabs, 0u);
}

}  // namespace
}  // namespace switchyard::ucx
