// When an event loop looks for messages, and when it sleeps.
#include "ucx/waits.h"

#include <gtest/gtest.h>

namespace switchyard::ucx {
namespace {

using namespace std::chrono_literals;

constexpr auto longest = 500us;

struct Loop {
  Waits waits{longest};
  Waits::Clock::time_point now{1h};

  /** What it is like to wait so long for a message: whether it was found by looking, once in `turn`. */
  bool wait(Waits::Clock::duration time, Waits::Clock::duration turn = 10us) {
    const auto end = now + time;
    bool looks = true;
    while (now < end && (looks = waits.looks_on(now))) now += turn;
    now = std::max(now, end);
    waits.end(now);
    return looks;
  }
};

TEST(Waits, LooksOnceSeveralWereShort) {
  Loop loop;
  for (int i = 0; i < 6; ++i) EXPECT_FALSE(loop.wait(200us)) << i;
  EXPECT_TRUE(loop.wait(200us));
  EXPECT_TRUE(loop.wait(400us));
}

TEST(Waits, SleepsOnceSomeWereLong) {
  Loop loop;
  for (int i = 0; i < 20; ++i) loop.wait(200us);
  for (int i = 0; i < 10; ++i) loop.wait(10ms);
  const auto before = loop.waits.looked();
  for (int i = 0; i < 10; ++i) EXPECT_FALSE(loop.wait(10ms)) << i;
  EXPECT_EQ(loop.waits.looked(), before);
}

TEST(Waits, LearnsWhichOfABatchAreLong) {
  for (int layers = 1; layers <= 4; ++layers) {
    Loop loop;
    const auto batch = [&](bool learned) {
      for (int layer = 0; layer < layers; ++layer) EXPECT_TRUE(loop.wait(100us) || !learned) << layers;
      const auto before = loop.waits.looked();
      EXPECT_FALSE(loop.wait(2ms));
      if (learned) EXPECT_EQ(loop.waits.looked(), before) << layers;
    };
    for (int i = 0; i < 8; ++i) batch(false);
    for (int i = 0; i < 10; ++i) batch(true);
  }
}

TEST(Waits, LooksInVainOnceAfterManyThatAreShort) {
  Loop loop;
  for (int i = 0; i < 10; ++i) {
    for (int layer = 0; layer < 58; ++layer) EXPECT_TRUE(loop.wait(100us) || i == 0 || layer < 4) << i << " " << layer;
    loop.wait(5ms);
  }
}

TEST(Waits, LooksNoLongerThanTheLongest) {
  Loop loop;
  for (int i = 0; i < 20; ++i) loop.wait(200us);
  const auto before = loop.waits.looked();
  loop.wait(1h);
  EXPECT_GE(loop.waits.looked() - before, longest - 20us);
  EXPECT_LE(loop.waits.looked() - before, longest + 20us);
}

TEST(Waits, CountsTheTimeThatItLookedAndNoOther) {
  Loop loop;
  for (int i = 0; i < 20; ++i) loop.wait(200us);
  const auto before = loop.waits.looked();
  EXPECT_TRUE(loop.wait(200us));
  EXPECT_EQ(loop.waits.looked() - before, 200us);
  // Something else ran between two looks.
  EXPECT_TRUE(loop.wait(400us, 300us));
  EXPECT_LE(loop.waits.looked() - before, 300us);
}

TEST(Waits, CountsNothingWhileAnotherWaits) {
  Loop loop;
  for (int i = 0; i < 20; ++i) loop.wait(200us);
  EXPECT_TRUE(loop.waits.looks_on(loop.now));
  loop.waits.forget();
  const auto before = loop.waits.looked();
  loop.now += 1s;
  loop.waits.end(loop.now);
  EXPECT_TRUE(loop.waits.looks_on(loop.now));
  EXPECT_EQ(loop.waits.looked(), before);
}

TEST(Waits, NeverLooksWhereItMayNot) {
  Loop loop{.waits = Waits(0us)};
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(loop.wait(1ns));
  EXPECT_EQ(loop.waits.looked(), 0us);
}

}  // namespace
}  // namespace switchyard::ucx
