// A fabric in this process and one in a child, which is stopped or killed. `UCX_TLS=tcp ./ucx_process_test` narrows the
// transports.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <thread>

#include "ucx/peer_memory.h"
#include "ucx/transports.h"
#include "ucx_child.h"

namespace switchyard::ucx {
namespace {

/** The parent's end of a channel to a child. */
struct ToChild {
  Child child;
  SlabArena arena{1u << 30};
  Inbox inbox;
  TestFabric fabric{arena};
  uint64_t channel = fabric.open(key_of(1), {message_bytes_max}, inbox.events());

  ToChild() {
    const auto [address, peer] = Child::read_address(child.socket);
    Child::write_address(child.socket, fabric.address(), channel);
    Completion connected;
    fabric.connect(channel, address, peer, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  ~ToChild() { child.end(); }  // Before the fabric.

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
    for (int i = 0; i < 200 && fabric.transports(channel).rfind("mapped ", 0) != 0; ++i) std::this_thread::sleep_for(5ms);
  }
};

constexpr const char* no_reading = "UCX_TLS or this system keeps processes from mapping each other's slabs";

/** Whether the system lets processes read each other, as a container may not. */
bool reading_is_allowed() {
  if (!shared_memory_allowed(transports_of(Reach::network))) return false;
  int done[2];
  if (pipe(done) != 0) return false;
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    (void)!::read(done[0], &byte, 1);
    _exit(0);
  }
  const std::string path = "/proc/" + std::to_string(child) + "/fd/" + std::to_string(done[0]);
  char target[64];
  const bool allowed = readlink(path.c_str(), target, sizeof(target)) > 0;
  (void)!::write(done[1], "x", 1);
  waitpid(child, nullptr, 0);
  ::close(done[0]);
  ::close(done[1]);
  return allowed;
}

TEST(FabricProcess, LongMessagesAreCopiedOutOfThePeersSlabsAndShortOnesAreNot) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  ToChild to;
  to.echo(100, 10, 1);
  to.settle();
  EXPECT_EQ(to.fabric.transports(to.channel).rfind("mapped ", 0), 0u) << to.fabric.transports(to.channel);
  const uint64_t before = to.fabric.stats().bytes_taken;
  to.echo(1000, 10, 2);
  EXPECT_EQ(to.fabric.stats().bytes_taken, before);
  for (size_t rows : {size_t{16384}, size_t{65536}, size_t{1} << 20, (size_t{8} << 20) + 3}) to.echo(rows, 100, 3);
  EXPECT_GE(to.fabric.stats().bytes_taken, before + 9 * (1u << 20));
  EXPECT_EQ(to.arena.stats().slabs, 0u);
}

TEST(FabricProcess, RowsThatLieApartAreGatheredByThePeer) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  ToChild to;
  to.echo(100, 10, 1);
  to.settle();
  for (const auto& [rows, row_bytes] : {std::pair{900, 64}, std::pair{60, 8192}, std::pair{3000, 8192}, std::pair{30000, 96}}) {
    const Selected selected(to.arena, static_cast<size_t>(rows), static_cast<size_t>(row_bytes));
    ASSERT_FALSE(to.send(selected.message(to.arena)));
    Child::write_all(to.child.socket, "e", 1);
    ASSERT_TRUE(to.inbox.wait_messages(1));
    selected.expect_arrived(to.inbox.take().at(0));
  }
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

/** Long messages stay here or wait for a stream; short ones are UCX's, which does not take them back. */
class Flush : public testing::TestWithParam<std::tuple<size_t, int>> {};

TEST_P(Flush, IsAllThatAStoppedPeerCanDelay) {
  const auto [row_bytes, flush_ms] = GetParam();
  ToChild to;
  to.echo(100, 10, 1);
  to.settle();
  kill(to.child.pid, SIGSTOP);
  waitpid(to.child.pid, nullptr, WUNTRACED);  // It runs on until the signal has reached it.
  const size_t count = (32u << 20) / row_bytes;
  // They outlive the fabric.
  const auto ended = std::make_shared<std::atomic<size_t>>(0);
  const auto closed = std::make_shared<std::promise<void>>();
  for (size_t i = 0; i < count; ++i) {
    to.fabric.send(to.channel, message_of(to.arena, row_bytes, 16, 1), [ended](auto) { ++*ended; });
  }
  to.fabric.close(to.channel, [closed] { closed->set_value(); }, std::chrono::milliseconds(flush_ms));
  // The last of the wait is for what UCX has in its hands.
  EXPECT_EQ(closed->get_future().wait_for(2 * Fabric::flush_wait + 10s), std::future_status::ready);
  EXPECT_EQ(*ended, count);
  EXPECT_EQ(to.arena.stats().slabs, 0u);
  kill(to.child.pid, SIGCONT);
}

INSTANTIATE_TEST_SUITE_P(FabricProcess, Flush,
                         testing::Combine(testing::Values(size_t{12'000}, size_t{1} << 20), testing::Values(0, 100)));

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

/** Files of slab memory that this process has open, its own among them. */
size_t open_slab_files() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone).string().find(MemoryFile::name) != std::string::npos;
  }
  return count;
}

TEST(FabricProcess, UnmapsAPeerThatStandsStillAfterItsLastChannel) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  const size_t before = open_slab_files();
  ToChild to;
  to.echo(1 << 20, 16, 1);
  to.settle();
  if (open_slab_files() == before + 1) GTEST_SKIP() << "these transports leave shared memory out";
  kill(to.child.pid, SIGSTOP);
  to.fabric.close(to.channel, [] {}, 0ms);
  for (int i = 0; i < 600 && open_slab_files() > before + 1; ++i) std::this_thread::sleep_for(100ms);
  EXPECT_EQ(open_slab_files(), before + 1);
  kill(to.child.pid, SIGCONT);
}

TEST(PeerMemory, IsLeftOutWhereTheListOfTransportsLeavesItOut) {
  for (const char* list : {"", "all", "cma", "tcp,posix", "shm,tcp", "sm", "^tcp", "^cma"}) {
    EXPECT_TRUE(shared_memory_allowed(list)) << list;
    EXPECT_FALSE(shared_memory_allowed(without_shared_memory(list))) << list;
  }
  for (const char* list : {"tcp", "tcp,self", "^sm", "^tcp,shm", "^posix,sysv,cma,knem,xpmem"}) {
    EXPECT_FALSE(shared_memory_allowed(list)) << list;
  }
}

TEST(PeerMemory, IsLeftOutOfAListOfTransportsWhichIsOtherwiseAsItWas) {
  const std::pair<const char*, const char*> lists[] = {
      {"", "^sm"}, {"all", "^sm"}, {"tcp,all", "^sm"}, {"^rc", "^rc,sm"}, {"tcp,sm,self", "tcp,self"}, {"rc,mm,cma", "rc"}, {"posix", "self"}, {"tcp", "tcp"},
  };
  for (const auto& [given, left] : lists) EXPECT_EQ(without_shared_memory(given), left) << given;
}

/** A process that holds a mark and some bytes, and wipes the mark when it is told to. */
struct Holder {
  static constexpr size_t length = 100000;
  int socket;
  pid_t pid;
  Beacon beacon;
  uint64_t offset;

  Holder(const Mark& mark, uint8_t content) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    pid = fork();
    if (pid == 0) {
      ::close(ends[0]);
      hold(ends[1], mark, content);
    }
    ::close(ends[1]);
    socket = ends[0];
    Child::read_all(socket, &beacon, sizeof(beacon));
    Child::read_all(socket, &offset, sizeof(offset));
  }
  void wipe() {
    char byte = 'w';
    Child::write_all(socket, &byte, 1);
    Child::read_all(socket, &byte, 1);
  }
  void end() {
    ::close(socket);
    waitpid(pid, nullptr, 0);
  }

 private:
  [[noreturn]] static void hold(int socket, const Mark& mark, uint8_t content) {
    SlabArena arena(1u << 20);
    HeldMark held(arena.file(), mark);
    const SlabRef slab = arena.allocate(length);
    std::memset(slab->data(), content, length);
    const Beacon beacon = held.beacon();
    const uint64_t offset = slab->file_offset();
    Child::write_all(socket, &beacon, sizeof(beacon));
    Child::write_all(socket, &offset, sizeof(offset));
    char byte;
    while (::read(socket, &byte, 1) > 0) {
      held.wipe();
      Child::write_all(socket, &byte, 1);
    }
    _exit(0);
  }
};

TEST(PeerMemory, ReadsOnlyAProcessThatHoldsTheMark) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  const Mark mark = random_mark();
  Holder holder(mark, 7);
  const Beacon& beacon = holder.beacon;
  EXPECT_FALSE(PeerMemory::open(beacon, random_mark())) << "another mark";
  SlabArena own(1u << 20);
  EXPECT_FALSE(PeerMemory::open(HeldMark(own.file(), mark).beacon(), mark)) << "this process itself";
  EXPECT_FALSE(PeerMemory::open({-1, beacon.descriptor, beacon.mark_offset}, mark));
  EXPECT_FALSE(PeerMemory::open({beacon.process, 0, beacon.mark_offset}, mark)) << "another file";
  EXPECT_FALSE(PeerMemory::open({beacon.process, 9999, beacon.mark_offset}, mark)) << "no file";
  EXPECT_FALSE(PeerMemory::open({beacon.process, beacon.descriptor, uint64_t{1} << 40}, mark)) << "beyond the file";
  const auto memory = PeerMemory::open(beacon, mark);
  ASSERT_TRUE(memory);
  const std::vector<uint8_t> expected(Holder::length, 7);
  std::vector<uint8_t> copy(Holder::length);
  EXPECT_TRUE(memory->read(holder.offset, copy.size(), copy.data()));
  EXPECT_EQ(copy, expected);
  EXPECT_FALSE(memory->read(uint64_t{1} << 40, 1, copy.data())) << "beyond the file";
  EXPECT_FALSE(memory->read(holder.offset, SIZE_MAX, copy.data())) << "beyond the file";
  const auto gather = [&](uint64_t offset, size_t row_bytes, uint32_t index) {
    return memory->gather(offset, row_bytes, std::array{uint32_t{0}, index}, reinterpret_cast<std::byte*>(copy.data()));
  };
  EXPECT_TRUE(gather(holder.offset, 1000, 99));
  EXPECT_FALSE(gather(holder.offset, 1000, UINT32_MAX)) << "beyond the file";
  EXPECT_FALSE(gather(holder.offset, SIZE_MAX / 2, 3)) << "longer than memory";
  EXPECT_FALSE(gather(uint64_t{1} << 62, 1000, 0)) << "beyond the file";
  holder.wipe();
  EXPECT_FALSE(memory->read(holder.offset, copy.size(), copy.data())) << "the mark is wiped";
  holder.end();
}

TEST(PeerMemory, IsMappedOnceForAllChannelsToAProcess) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  const Mark mark = random_mark();
  Holder holder(mark, 3);
  const auto first = PeerMemory::open(holder.beacon, mark);
  ASSERT_TRUE(first);
  EXPECT_FALSE(PeerMemory::open(holder.beacon, random_mark(), first->file())) << "each channel needs its own mark";
  const auto second = PeerMemory::open(holder.beacon, mark, first->file());
  ASSERT_TRUE(second);
  EXPECT_EQ(second->file(), first->file());
  // Another process may have got the number of one that is gone.
  Holder other(mark, 4);
  const auto third = PeerMemory::open(other.beacon, mark, first->file());
  ASSERT_TRUE(third);
  EXPECT_NE(third->file(), first->file());
  std::vector<uint8_t> copy(Holder::length);
  EXPECT_TRUE(third->read(other.offset, copy.size(), copy.data()));
  EXPECT_EQ(copy, std::vector<uint8_t>(Holder::length, 4));
  EXPECT_TRUE(second->read(holder.offset, copy.size(), copy.data()));
  EXPECT_EQ(copy, std::vector<uint8_t>(Holder::length, 3));
  other.end();
  holder.end();
}

TEST(PeerMemory, WhatWasOfferedOutlivesItsOwner) {
  if (!reading_is_allowed()) GTEST_SKIP() << no_reading;
  const Mark mark = random_mark();
  Holder holder(mark, 9);
  const auto memory = PeerMemory::open(holder.beacon, mark);
  ASSERT_TRUE(memory);
  kill(holder.pid, SIGKILL);
  holder.end();
  std::vector<uint8_t> copy(Holder::length);
  EXPECT_TRUE(memory->read(holder.offset, copy.size(), copy.data()));
  EXPECT_EQ(copy, std::vector<uint8_t>(Holder::length, 9));
}

TEST(FabricProcess, KilledPeerFailsTheChannelAndEverySendSoon) {
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
  const auto failure = to.inbox.wait_failure(10s);
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
