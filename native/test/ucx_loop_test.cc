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

  Turns() { connect_both(left, left_channel, right, right_channel); }

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

TEST(FabricLoop, DrivesAloneOrNotAtAll) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  EXPECT_FALSE(turns.right.attach_loop());
  // The thread has to wake first.
  for (int tries = 0; tries < 500 && turns.send(100) == turns.loop->thread(); ++tries) std::this_thread::sleep_for(10ms);
  for (int i = 0; i < 20; ++i) EXPECT_NE(turns.send(100), turns.loop->thread());
  turns.loop.reset();
  EXPECT_TRUE(Turns().loop);
  EXPECT_FALSE(turns.right.attach_loop());
}

TEST(FabricLoop, IsFollowedByTheNextOne) {
  Turns turns;
  turns.loop.reset();
  turns.loop.emplace(turns.right);
  EXPECT_TRUE(turns.comes_to_the_loop());
}

TEST(FabricLoop, LeavesAllToTheThreadWhenItEnds) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  const std::thread::id loop = turns.loop->thread();
  turns.loop.reset();
  for (const size_t row_bytes : {size_t{100}, size_t{4} << 20, size_t{100}}) EXPECT_NE(turns.send(row_bytes), loop);
}

TEST(FabricLoop, ThatStandsStillHoldsNothingBack) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  const std::thread::id loop = turns.loop->thread();
  std::promise<void> goes_on;
  std::thread blocked([&, on = goes_on.get_future()] {
    turns.loop->pause();
    on.wait();
    turns.loop->resume();
  });
  // Whatever it was at.
  std::this_thread::sleep_for(50ms);
  for (int i = 0; i < 5; ++i) EXPECT_NE(turns.send(100), loop);
  std::promise<void> closed;
  const uint64_t other = turns.right.open(key_of(2), {message_bytes_max}, {});
  turns.right.close(other, [&] { closed.set_value(); });
  EXPECT_EQ(closed.get_future().wait_for(5s), std::future_status::ready);
  goes_on.set_value();
  blocked.join();
  EXPECT_TRUE(turns.comes_to_the_loop());
}

TEST(FabricLoop, ThatStandsStillInTheMiddleOfItsTurnHoldsNothingBack) {
  Turns turns;
  ASSERT_TRUE(turns.comes_to_the_loop());
  turns.loop->stop_after_what_comes();
  for (int tries = 0; tries < 500 && !turns.loop->stands(); ++tries, std::this_thread::sleep_for(10ms)) turns.send(100);
  ASSERT_TRUE(turns.loop->stands());
  for (int i = 0; i < 5; ++i) EXPECT_NE(turns.send(100), turns.loop->thread());
  turns.loop->resume();
  EXPECT_TRUE(turns.comes_to_the_loop());
}

}  // namespace
}  // namespace switchyard::ucx
