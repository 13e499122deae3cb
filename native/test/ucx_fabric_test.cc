// Two fabrics exchange messages in one process. UCX_TLS in the environment narrows the transports:
// `UCX_TLS=tcp ./ucx_fabric_test`.
#include <time.h>

#include <cstdlib>
#include <future>
#include <thread>

#include "ucx/peer_memory.h"
#include "ucx_support.h"

namespace switchyard::ucx {
namespace {

struct Pair {
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  TestFabric left{arena}, right{arena};
  uint64_t left_channel = left.open(key_of(1), {message_bytes_max}, left_inbox.events());
  uint64_t right_channel = right.open(key_of(1), {message_bytes_max}, right_inbox.events());

  Pair() { connect_both(left, left_channel, right, right_channel); }

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

/**
 * UCX joins the endpoints of two workers in the order in which each side made them, whatever channels they carry: the other
 * channel's endpoint at the right end answers the long messages of this one.
 */
class FabricOrder : public testing::TestWithParam<bool> {};

TEST_P(FabricOrder, AChannelGoesOnWhenAnotherToTheSamePeerIsClosed) {
  const bool left_connects_other = GetParam();
  SlabArena arena{1u << 30};
  Inbox inbox, other_inbox;
  TestFabric left{arena}, right{arena};
  const auto open = [](Fabric& fabric, Inbox& inbox) {
    return fabric.open(key_of(1), {message_bytes_max}, inbox.events());
  };
  const auto connect = [](Fabric& fabric, uint64_t channel, Fabric& peer, uint64_t peer_channel) {
    Completion connected;
    fabric.connect(channel, peer.address(), peer_channel, connected.callback());
    EXPECT_FALSE(connected.wait());
  };
  const uint64_t left_channel = open(left, inbox), right_channel = open(right, inbox);
  const uint64_t left_other = open(left, other_inbox), right_other = open(right, other_inbox);
  connect(right, right_other, left, left_other);
  connect(right, right_channel, left, left_channel);
  connect_both(left, left_channel, right, right_channel);
  if (left_connects_other) connect(left, left_other, right, right_other);

  const auto send = [&] {
    Completion sent;
    left.send(left_channel, message_of(arena, 1 << 20, 100, 3), sent.callback());
    ASSERT_FALSE(sent.wait());
    ASSERT_TRUE(inbox.wait_messages(1));
    expect_content(inbox.take().at(0), 1 << 20, 100, 3);
  };
  send();
  std::promise<void> closed;
  right.close(right_other, [&] { closed.set_value(); });
  closed.get_future().wait();
  for (int i = 0; i < 20 && !HasFailure(); ++i) send();
}

INSTANTIATE_TEST_SUITE_P(OtherIsHalfConnectedOrWhole, FabricOrder, testing::Bool());

/** Channels between two fabrics, one after the other, as batches come and go. */
struct Succession {
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  TestFabric left{arena};
  std::unique_ptr<Fabric> right = std::make_unique<TestFabric>(arena);
  uint64_t left_channel = 0, right_channel = 0;

  void open() {
    left_channel = left.open(key_of(1), {message_bytes_max}, left_inbox.events());
    right_channel = right->open(key_of(1), {message_bytes_max}, right_inbox.events());
  }
  void connect_left() {
    Completion connected;
    left.connect(left_channel, right->address(), right_channel, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  void connect_right() {
    Completion connected;
    right->connect(right_channel, left.address(), left_channel, connected.callback());
    EXPECT_FALSE(connected.wait());
  }
  void close() {
    left.close(left_channel, [] {});
    right->close(right_channel, [] {});
  }
  void expect_both_ways(size_t row_bytes) {
    left.send(left_channel, message_of(arena, row_bytes, 10, 1), [](auto) {});
    right->send(right_channel, message_of(arena, row_bytes, 10, 2), [](auto) {});
    ASSERT_TRUE(left_inbox.wait_messages(1));
    ASSERT_TRUE(right_inbox.wait_messages(1));
    expect_content(right_inbox.take().at(0), row_bytes, 10, 1);
    expect_content(left_inbox.take().at(0), row_bytes, 10, 2);
  }
  void expect_whole() {
    open();
    connect_left();
    connect_right();
    for (const size_t row_bytes : {size_t{10}, size_t{2} << 20}) expect_both_ways(row_bytes);
    close();
  }
};

TEST(FabricSuccession, ChannelsThatOneEndAloneConnectedLeaveLaterOnesWhole) {
  Succession channels;
  for (int i = 0; i < 3 && !HasFatalFailure(); ++i) {
    channels.open();
    channels.connect_left();
    channels.close();
    channels.expect_whole();
  }
}

TEST(FabricSuccession, ChannelsThatOneEndAloneAbandonedLeaveLaterOnesWhole) {
  Succession channels;
  for (int i = 0; i < 3 && !HasFatalFailure(); ++i) {
    channels.open();
    channels.connect_left();
    channels.left.abandon(channels.left_channel);
    channels.close();
    channels.expect_whole();
  }
}

TEST(FabricSuccession, AFabricThatEndsTakesItsChannelsWithIt) {
  Succession channels;
  channels.open();
  channels.connect_left();
  channels.connect_right();
  channels.expect_both_ways(10);
  channels.right.reset();
  const auto failure = channels.left_inbox.wait_failure(5s);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code, Code::link_lost);
}

TEST(Fabric, RowsThatLieApartArriveSideBySide) {
  Pair pair;
  for (const auto& [rows, row_bytes] : {std::pair{30, 64}, std::pair{3, 5}, std::pair{900, 8192}}) {
    const Selected selected(pair.arena, static_cast<size_t>(rows), static_cast<size_t>(row_bytes));
    ASSERT_FALSE(pair.send(selected.message(pair.arena)));
    ASSERT_TRUE(pair.right_inbox.wait_messages(1));
    selected.expect_arrived(pair.right_inbox.take().at(0));
  }
  EXPECT_EQ(pair.arena.stats().slabs, 0u);
}

TEST(Fabric, RowsThatAreNotInTheSlabAreRefusedByName) {
  SlabArena arena(1u << 20);
  const SlabRef slab = arena.allocate(1000);
  const auto refusal = [&](size_t row_bytes, uint32_t index) -> std::string {
    try {
      select_rows(arena, slab, row_bytes, std::array{index}, std::array<uint8_t, 1>{});
    } catch (const Error& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_EQ(refusal(100, 10), "indices is 10; allowed: below 10, the rows of the slab");
  EXPECT_EQ(refusal(1001, 0), "rowBytes is 1001; allowed: 1 to 1000, the size of the slab");
  EXPECT_EQ(refusal(0, 0), "rowBytes is 0; allowed: 1 to 1000, the size of the slab");
  EXPECT_EQ(refusal(100, 9), "none");
}

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
  TestFabric right{arena}, left{arena};
  const uint64_t channel = right.open(key_of(1), {message_bytes_max}, inbox.events());
  const uint64_t intruder = left.open(key_of(2), {message_bytes_max}, intruder_inbox.events());
  Completion connected, sent;
  left.connect(intruder, right.address(), channel, connected.callback());
  ASSERT_FALSE(connected.wait());
  left.send(intruder, message_of(arena, 1 << 20, 16, 1), sent.callback());
  sent.wait();
  // The greeting of the intruder is refused like its message.
  const uint64_t refused = 2;
  for (int i = 0; i < 200 && right.stats().messages_refused < refused; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_EQ(right.stats().messages_refused, refused);
  EXPECT_EQ(right.stats().bytes_received, 0u);
  EXPECT_FALSE(inbox.wait_messages(1, 50ms));
}

TEST(Fabric, MessageOverTheLimitFailsTheChannelBeforeMemoryIsTaken) {
  SlabArena arena{1u << 30};
  Inbox inbox, sender_inbox;
  TestFabric right{arena}, left{arena};
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
    TestFabric right{arena}, left{arena};
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

}  // namespace
}  // namespace switchyard::ucx
