// Splitting the rows of replicated experts.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/split.h"

namespace switchyard {
namespace {

struct Case {
  std::vector<std::uint32_t> rows;
  std::vector<std::uint32_t> offsets{0};
  std::vector<std::uint32_t> holders;
  std::vector<double> queued;
  std::vector<double> per_row;

  ExpertCopies copies() const { return {offsets, holders}; }
  std::vector<std::uint32_t> split() const { return split_rows(rows, copies(), queued.size(), {queued, per_row}); }

  std::vector<double> ends(const std::vector<std::uint32_t>& at) const {
    std::vector<double> end = queued;
    for (std::size_t copy = 0; copy < at.size(); ++copy) end[holders[copy]] += at[copy] * per_row[holders[copy]];
    return end;
  }
};

Case random_case(std::mt19937_64& random, std::size_t experts, std::size_t workers, std::size_t copies, std::uint32_t rows) {
  Case one;
  std::uniform_real_distribution<double> unit(0, 1);
  for (std::size_t w = 0; w < workers; ++w) {
    one.queued.push_back(random() % 2 == 0 ? 0 : unit(random) * rows);
    one.per_row.push_back(random() % 2 == 0 ? 1 : 0.2 + unit(random));
  }
  std::vector<std::uint32_t> all(workers);
  std::iota(all.begin(), all.end(), 0u);
  for (std::size_t e = 0; e < experts; ++e) {
    one.rows.push_back(static_cast<std::uint32_t>(random() % (rows + 1)));
    std::ranges::shuffle(all, random);
    const std::size_t count = random() % (std::min(workers, copies) + 1);
    one.holders.insert(one.holders.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
    std::sort(one.holders.begin() + one.offsets.back(), one.holders.end());
    one.offsets.push_back(static_cast<std::uint32_t>(one.holders.size()));
  }
  return one;
}

/** The earliest last end of all splits there are. */
double best_of_all(const Case& one) {
  std::vector<double> end = one.queued;
  double best = std::numeric_limits<double>::infinity();
  std::function<void(std::size_t, std::uint32_t, std::uint32_t)> place = [&](std::size_t e, std::uint32_t copy, std::uint32_t left) {
    if (e == one.rows.size()) {
      best = std::min(best, *std::ranges::max_element(end));
      return;
    }
    const std::uint32_t last = one.offsets[e + 1];
    const auto next = [&] { place(e + 1, last, e + 1 < one.rows.size() ? one.rows[e + 1] : 0); };
    if (copy == last) return next();
    const std::uint32_t worker = one.holders[copy];
    for (std::uint32_t given = copy + 1 == last ? left : 0; given <= left; ++given) {
      end[worker] += given * one.per_row[worker];
      if (copy + 1 == last) {
        next();
      } else {
        place(e, copy + 1, left - given);
      }
      end[worker] -= given * one.per_row[worker];
    }
  };
  place(0, 0, one.rows[0]);
  return best;
}

TEST(Split, TheLastWorkerEndsAsEarlyAsInTheBestOfAllSplitsButForARow) {
  std::mt19937_64 random(1);
  for (int turn = 0; turn < 2000; ++turn) {
    const Case one = random_case(random, 1 + random() % 4, 1 + random() % 4, 3, 7);
    const std::vector<double> end = one.ends(one.split());
    EXPECT_LE(*std::ranges::max_element(end), best_of_all(one) + *std::ranges::max_element(one.per_row) + 1e-9);
  }
}

TEST(Split, HasEveryRowOnceAndNoMoveOfARowHelps) {
  std::mt19937_64 random(2);
  for (int turn = 0; turn < 300; ++turn) {
    const Case one = random_case(random, 1 + random() % 64, 1 + random() % 16, 1 + random() % 4, 1000);
    const std::vector<std::uint32_t> at = one.split();
    const std::vector<double> end = one.ends(at);
    for (std::size_t e = 0; e < one.rows.size(); ++e) {
      const auto copies = std::span(at).subspan(one.offsets[e], one.offsets[e + 1] - one.offsets[e]);
      EXPECT_EQ(std::accumulate(copies.begin(), copies.end(), 0u), copies.empty() ? 0 : one.rows[e]);
      for (std::uint32_t from = one.offsets[e]; from < one.offsets[e + 1]; ++from) {
        for (std::uint32_t to = one.offsets[e]; to < one.offsets[e + 1]; ++to) {
          if (at[from] == 0 || from == to) continue;
          EXPECT_GE(end[one.holders[to]] + one.per_row[one.holders[to]], end[one.holders[from]] - 1e-6);
        }
      }
    }
    EXPECT_EQ(one.split(), at) << "the same again";
  }
}

TEST(Split, EvensOutALongChainOfNeighbours) {
  // Worker w shares expert w with worker w + 1, and all rows are of the first expert's end.
  Case one;
  constexpr std::uint32_t workers = 64;
  for (std::uint32_t e = 0; e + 1 < workers; ++e) {
    one.rows.push_back(e < workers / 2 ? 640 : 0);
    one.holders.insert(one.holders.end(), {e, e + 1});
    one.offsets.push_back(2 * (e + 1));
  }
  one.queued.assign(workers, 0);
  one.per_row.assign(workers, 1);
  const std::vector<double> end = one.ends(one.split());
  const double even = 640.0 * (workers / 2) / (workers / 2 + 1);
  for (std::uint32_t w = 0; w <= workers / 2; ++w) EXPECT_NEAR(end[w], even, 1.5);
}

TEST(Split, LeavesAWorkerAloneThatIsBusyForLonger) {
  Case one;
  one.rows = {1000, 10};
  one.holders = {0, 1, 2, 0, 1};
  one.offsets = {0, 3, 5};
  one.queued = {1e6, 0, 0};
  one.per_row = {1, 1, 3};
  const std::vector<std::uint32_t> at = one.split();
  EXPECT_EQ(at[0], 0u);
  EXPECT_EQ(at[3], 0u);
  EXPECT_NEAR(one.ends(at)[1], one.ends(at)[2], 3) << "what is left of the others is even, whatever the first has";
}

}  // namespace
}  // namespace switchyard
