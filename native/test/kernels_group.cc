// Grouping.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "kernels/group.h"
#include "kernels_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

struct Chosen {
  std::vector<std::uint32_t> experts;
  std::vector<float> weights;
  std::size_t top_k = 0;

  operator Choices() const { return {experts, weights, top_k}; }
};

/** Copies of experts, [experts] lists of workers, with what a span of them points to. */
struct Copies {
  explicit Copies(const std::vector<std::vector<std::uint32_t>>& lists, std::size_t count) : offsets(1), workers(count) {
    for (const auto& list : lists) {
      holders.insert(holders.end(), list.begin(), list.end());
      offsets.push_back(static_cast<std::uint32_t>(holders.size()));
    }
  }

  GroupTargets targets(const GroupLimits& limits = {}) const {
    return {.copies = {offsets, holders}, .workers = workers, .pace = {}, .limits = limits};
  }
  bool has(std::uint32_t expert, std::uint32_t worker) const {
    const auto list = std::span(holders).subspan(offsets[expert], offsets[expert + 1] - offsets[expert]);
    return worker == no_worker ? list.empty() : std::ranges::find(list, worker) != list.end();
  }

  std::vector<std::uint32_t> offsets;
  std::vector<std::uint32_t> holders;
  std::size_t workers;
};

/** Up to `most` copies of each expert, at least `least`. */
Copies random_copies(std::mt19937_64& random, std::size_t experts, std::size_t workers, std::size_t least, std::size_t most) {
  std::vector<std::vector<std::uint32_t>> lists(experts);
  for (auto& list : lists) {
    const std::size_t count = std::min(workers, least + random() % (most - least + 1));
    while (list.size() < count) {
      const auto worker = static_cast<std::uint32_t>(random() % workers);
      if (std::ranges::find(list, worker) == list.end()) list.push_back(worker);
    }
    std::ranges::sort(list);
  }
  return Copies(lists, workers);
}

Chosen random_choices(std::mt19937_64& random, std::size_t rows, std::size_t top_k, std::size_t experts) {
  Chosen choices{.experts = {}, .weights = {}, .top_k = top_k};
  std::vector<std::uint32_t> all(experts);
  std::iota(all.begin(), all.end(), 0u);
  for (std::size_t t = 0; t < rows; ++t) {
    std::ranges::shuffle(all, random);
    choices.experts.insert(choices.experts.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(top_k));
  }
  choices.weights = test::random_floats(random, rows * top_k, 0, 1);
  return choices;
}

/** Checks one plan against the definition, and marks the slots that it carries. */
void check_plan(const GroupPlan& plan, const Chosen& choices, const Copies& copies, std::vector<int>& carried) {
  EXPECT_TRUE(std::ranges::is_sorted(plan.tokens, std::less_equal<>())) << "each token once, ascending";
  ASSERT_EQ(plan.slots.size(), plan.row_indices.size());
  ASSERT_EQ(plan.weights.size(), plan.row_indices.size());
  std::size_t entry = 0;
  std::int64_t last_expert = -1;
  std::set<std::uint32_t> used;
  for (std::size_t s = 0; s < plan.segments.size(); s += 2) {
    const std::uint32_t expert = plan.segments[s];
    EXPECT_GT(static_cast<std::int64_t>(expert), last_expert);
    last_expert = expert;
    EXPECT_TRUE(copies.has(expert, plan.worker));
    EXPECT_GT(plan.segments[s + 1], 0u);
    std::int64_t last_slot = -1;
    for (std::uint32_t i = 0; i < plan.segments[s + 1]; ++i, ++entry) {
      ASSERT_LT(entry, plan.slots.size());
      const std::uint32_t slot = plan.slots[entry];
      EXPECT_GT(static_cast<std::int64_t>(slot), last_slot) << "token order within a segment";
      last_slot = slot;
      EXPECT_EQ(choices.experts[slot], expert);
      EXPECT_EQ(choices.weights[slot], plan.weights[entry]);
      EXPECT_EQ(plan.tokens.at(plan.row_indices[entry]), slot / choices.top_k);
      used.insert(plan.row_indices[entry]);
      ++carried[slot];
    }
  }
  EXPECT_EQ(entry, plan.slots.size());
  EXPECT_EQ(used.size(), plan.tokens.size()) << "no row without use";
}

TEST(Group, EverySlotTravelsOnceAndEveryRowOncePerWorker) {
  std::mt19937_64 random(1);
  for (const std::size_t top_k : {1, 2, 3, 8, 12}) {
    for (const std::size_t workers : {1, 2, 5, 16}) {
      for (const std::size_t rows : {0, 1, 7, 200}) {
        for (const auto& [least, most] : {std::pair(1, 1), std::pair(1, 3), std::pair(0, 2)}) {
          const std::size_t experts = 16;
          const Chosen choices = random_choices(random, rows, top_k, experts);
          const Copies copies = random_copies(random, experts, workers, least, most);
          const auto plans = plan_groups(choices, copies.targets());
          std::vector<int> carried(rows * top_k);
          std::int64_t last_worker = -1;
          for (const GroupPlan& plan : plans) {
            EXPECT_GT(static_cast<std::int64_t>(plan.worker), last_worker);
            last_worker = plan.worker;
            EXPECT_FALSE(plan.tokens.empty());
            check_plan(plan, choices, copies, carried);
          }
          EXPECT_TRUE(std::ranges::all_of(carried, [](int times) { return times == 1; }));
        }
      }
    }
  }
}

TEST(Group, OfSomeSlotsCarriesThoseAlone) {
  std::mt19937_64 random(3);
  for (int turn = 0; turn < 100; ++turn) {
    const Chosen choices = random_choices(random, 40, 4, 12);
    const Copies before = random_copies(random, 12, 5, 1, 3);
    const auto plans = plan_groups(choices, before.targets());
    const Copies after = random_copies(random, 12, 5, 0, 3);
    std::vector<int> carried(160);
    for (std::size_t p = 0; p < plans.size(); ++p) {
      if (p % 2 == 0) {
        check_plan(plans[p], choices, before, carried);
        continue;
      }
      std::vector<std::uint32_t> slots = plans[p].slots;
      std::ranges::sort(slots);
      for (const GroupPlan& plan : plan_groups(choices, after.targets(), slots)) {
        check_plan(plan, choices, after, carried);
      }
    }
    EXPECT_TRUE(std::ranges::all_of(carried, [](int times) { return times == 1; }));
  }
}

TEST(Group, RowsOfReplicatedExpertsGoWhereTheirTokenGoesAnyway) {
  // Expert 0 is on both workers, 1 and 2 on one each: half of the tokens choose (0, 1), half (0, 2).
  const Copies copies({{0, 1}, {0}, {1}}, 2);
  Chosen choices{.experts = {}, .weights = std::vector<float>(400), .top_k = 2};
  for (std::uint32_t t = 0; t < 200; ++t) choices.experts.insert(choices.experts.end(), {0, 1 + t % 2});
  const auto plans = plan_groups(choices, copies.targets());
  ASSERT_EQ(plans.size(), 2u);
  for (const GroupPlan& plan : plans) {
    EXPECT_EQ(plan.tokens.size(), 100u) << "no token travels twice";
    EXPECT_EQ(plan.slots.size(), 200u);
  }
}

TEST(Group, PlansStayWithinTheLimitsOfTheirWorkersAndAreAsFewAsThoseAllow) {
  std::mt19937_64 random(4);
  constexpr std::size_t experts = 12;
  constexpr std::size_t top_k = 4;
  constexpr std::size_t rows = 150;
  constexpr std::size_t workers = 3;
  for (int turn = 0; turn < 200; ++turn) {
    const Chosen choices = random_choices(random, rows, top_k, experts);
    const Copies copies = random_copies(random, experts, workers, 1, 1 + static_cast<std::size_t>(turn) % 3);
    std::vector<double> rows_max(workers), entries_max(workers), cost_max(workers);
    const double row_cost = static_cast<double>(random() % 5);
    const double entry_cost = static_cast<double>(random() % 5);
    for (std::size_t w = 0; w < workers; ++w) {
      rows_max[w] = static_cast<double>(1 + random() % 60);
      entries_max[w] = static_cast<double>(top_k + random() % 200);
      cost_max[w] = row_cost + top_k * entry_cost + static_cast<double>(random() % 300);
    }
    const GroupLimits limits{rows_max, entries_max, cost_max, row_cost, entry_cost};
    const auto plans = plan_groups(choices, copies.targets(limits));
    std::vector<int> carried(rows * top_k);
    std::set<std::pair<std::uint32_t, std::uint32_t>> places;
    for (std::size_t p = 0; p < plans.size(); ++p) {
      const GroupPlan& plan = plans[p];
      check_plan(plan, choices, copies, carried);
      const std::size_t w = plan.worker;
      const auto within = [&](std::size_t tokens, std::size_t entries) {
        const double cost = static_cast<double>(tokens) * row_cost + static_cast<double>(entries) * entry_cost;
        return static_cast<double>(tokens) <= rows_max[w] && static_cast<double>(entries) <= entries_max[w] &&
               cost <= cost_max[w];
      };
      EXPECT_TRUE(within(plan.tokens.size(), plan.slots.size()));
      for (const std::uint32_t token : plan.tokens) {
        EXPECT_TRUE(places.emplace(plan.worker, token).second) << "a token is in one plan of a worker";
      }
      if (p + 1 == plans.size() || plans[p + 1].worker != plan.worker) continue;
      const GroupPlan& next = plans[p + 1];
      EXPECT_LT(plan.tokens.back(), next.tokens.front());
      const auto more = static_cast<std::size_t>(std::ranges::count(next.row_indices, 0u));
      EXPECT_FALSE(within(plan.tokens.size() + 1, plan.slots.size() + more)) << "the next token had room";
    }
    EXPECT_TRUE(std::ranges::all_of(carried, [](int times) { return times == 1; }));
  }
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::invalid_argument);
    return error.what();
  }
  return "no error";
}

TEST(Group, RefusesChoicesThatDoNotFit) {
  const std::vector<std::uint32_t> experts = {0, 1, 2, 7};
  const std::vector<float> weights(4, 0.5f);
  const Copies copies({{0}, {0}, {1}, {1}}, 2);
  const auto targets = copies.targets();
  EXPECT_EQ(message_of([&] { plan_groups({experts, weights, 2}, targets); }), "experts is 7; allowed: below 4");
  EXPECT_EQ(message_of([&] { plan_groups({experts, weights, 3}, targets); }),
            "topK is 3; allowed: a divisor of the number of experts given, 4");
  EXPECT_EQ(message_of([&] { plan_groups({experts, std::vector<float>(3), 2}, targets); }),
            "weights.length is 3; allowed: 0 or 4");
  const std::vector<std::uint32_t> fitting = {0, 1, 2, 3};
  const std::vector<double> plenty(2, 100), one(2, 1);
  const GroupLimits limits{plenty, one, plenty};
  EXPECT_EQ(message_of([&] { plan_groups({fitting, weights, 2}, copies.targets(limits)); }),
            "limits of worker 0 is too low for token 0; allowed: a row and 2 row indices at least");
}

TEST(Group, RefusesCopiesThatMakeNoSense) {
  const std::vector<std::uint32_t> experts = {0, 1};
  const auto refused = [&](std::vector<std::uint32_t> offsets, std::vector<std::uint32_t> workers) {
    const GroupTargets targets{.copies = {offsets, workers}, .workers = 2, .pace = {}};
    return message_of([&] { plan_groups({experts, {}, 2}, targets); });
  };
  const std::string ascending = "; allowed: ascending from 0 to the number of copies.workers";
  EXPECT_EQ(refused({1, 1, 2}, {0, 1}), "copies.offsets[0] is 1" + ascending);
  EXPECT_EQ(refused({0, 1, 3}, {0, 1}), "copies.offsets[2] is 3" + ascending);
  EXPECT_EQ(refused({0, 2, 1, 2}, {0, 1}), "copies.offsets[2] is 1" + ascending);
  EXPECT_EQ(refused({0, 1, 2}, {0, 2}), "copies.workers of expert 1 is 2; allowed: below 2, ascending");
  EXPECT_EQ(refused({0, 0, 2}, {1, 1}), "copies.workers of expert 1 is 1; allowed: below 2, ascending");
}

}  // namespace
}  // namespace switchyard
