// An event loop and the fabric's own thread take turns.
#include <future>
#include <thread>

#include "ucx_support.h"

namespace switchyard::ucx {
namespace {

/** Two fabrics, of which a loop drives the right one; what comes there notes the thread that brought it. */
struct Turns {
  SlabArena arena{1u << 30};
  Inbox left_inbox, right_inbox;
  std::mutex mutex;
  std::vector<std::thread::id> threads;
  Fabric left{arena}, right{arena};
  std::optional<EventLoop> loop{right};
  uint64_t left_channel = left.open(key_of(1), {message_bytes_max}, left_inbox.events());
  uint64_t right_channel = right.open(key_of(1), {message_bytes_max}, noting());

  Turns() {
    Completion one, two;
    left.connect(left_channel, right.address(), right_channel, one.callback());
    right.connect(right_channel, left.address(), left_channel, two.callback());
    EXPECT_FALSE(one.wait());
    EXPECT_FALSE(two.wait());
  }

  ChannelEvents noting() {
    ChannelEvents events = right_inbox.events();
    events.received = [this, push = events.received](Message message) {
      {
        const std::lock_guard lock(mutex);
        threads.push_back(std::this_thread::get_id());
      }
      push(std::move(message));
    };
    return events;
  }

  /** The thread that brought it. */
  std::thread::id send(size_t row_bytes) {
    Completion sent;
    left.send(left_channel, message_of(arena, row_bytes, 16, 3), sent.callback());
    EXPECT_FALSE(sent.wait());
    EXPECT_TRUE(right_inbox.wait_messages(1));
    for (const Message& message : right_inbox.take()) expect_content(message, row_bytes, 16, 3);
    const std::lock_guard lock(mutex);
    return threads.back();
  }

  /** Sends until the loop brings one; false: it never does. */
  bool comes_to_the_loop() {
    for (int tries = 0; tries < 500; ++tries) {
      if (send(100) == loop->thread()) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
};

TEST(FabricLoop, TakesTurnsWithTheThreadWhichHasTheLongMessages) {
  Turns turns;
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(turns.comes_to_the_loop());
    EXPECT_NE(turns.send(4 << 20), turns.loop->thread());
  }
}

TEST(FabricLoop, IsOneOfAFabric) {
  Turns turns;
  EXPECT_FALSE(turns.right.attach_loop());
  turns.loop.reset();
  EXPECT_TRUE(turns.right.attach_loop());
  turns.right.detach_loop();
}

TEST(FabricLoop, LeavesAllToTheThreadWhenItEnds) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  const std::thread::id loop = turns.loop->thread();
  turns.loop.reset();
  for (const size_t row_bytes : {size_t{100}, size_t{4} << 20, size_t{100}}) EXPECT_NE(turns.send(row_bytes), loop);
}

TEST(FabricLoop, ThatStandsStillHoldsBackNeitherClosesNorCommands) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  // It polls no more, and has not said that it ends.
  SlabArena& arena = turns.arena;
  Fabric third{arena};
  ASSERT_TRUE(third.attach_loop());
  Inbox inbox;
  const uint64_t channel = third.open(key_of(1), {message_bytes_max}, inbox.events());
  std::this_thread::sleep_for(50ms);
  Completion connected;
  third.connect(channel, turns.left.address(), turns.left_channel, connected.callback());
  EXPECT_FALSE(connected.wait());
  std::promise<void> closed;
  third.close(channel, [&] { closed.set_value(); }, 100ms);
  EXPECT_EQ(closed.get_future().wait_for(5s), std::future_status::ready);
}

}  // namespace
}  // namespace switchyard::ucx
