// The team of threads that computes experts: every task once, however late a member wakes.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "experts/cpu/team.h"
#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

TEST(Team, RunsEveryTaskOnceInManyShortPhases) {
  for (const int members : {1, 2, 3, 8}) {
    Team team(members);
    EXPECT_EQ(team.members(), members);
    std::mt19937 random(29);
    for (int phase = 0; phase < 5000; ++phase) {
      const size_t tasks = random() % 9;
      // Plain integers: what a member writes must be seen when run() returns.
      std::vector<int> done(tasks);
      team.run(tasks, [&](size_t member, size_t task) {
        ASSERT_LT(member, static_cast<size_t>(members));
        done.at(task) += 1;
      });
      ASSERT_EQ(done, std::vector<int>(tasks, 1)) << members << " members, phase " << phase;
    }
  }
}

TEST(Team, WakesMembersThatSleep) {
  Team team(3);
  for (int phase = 0; phase < 5; ++phase) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> meeting{0};
    // Each task waits for the others: it ends only if every member takes one.
    team.run(3, [&](size_t, size_t) {
      meeting.fetch_add(1);
      while (meeting.load() < 3) std::this_thread::yield();
    });
    EXPECT_EQ(meeting.load(), 3);
  }
}

TEST(Team, RefusesANumberOfMembersOutside) {
  EXPECT_THROW(Team(0), Error);
  EXPECT_THROW(Team(1025), Error);
}

}  // namespace
}  // namespace switchyard::cpu
