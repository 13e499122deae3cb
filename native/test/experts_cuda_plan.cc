// What the CUDA backend decides on the host: calls, batches, plans, registered memory, element functions. No device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "experts/cuda/calls.h"
#include "experts/cuda/layout.h"
#include "experts/cuda/nvml.h"
#include "experts/cuda/pinned_regions.h"
#include "experts/cuda/plan.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

class SizedExpert final : public Expert {
 public:
  explicit SizedExpert(size_t hidden, size_t ffn = 16, size_t matrices = 3) : hidden_(hidden), ffn_(ffn), matrices_(matrices) {}
  size_t bytes() const override { return matrices_ * hidden_ * ffn_ * sizeof(uint16_t); }
  size_t hidden() const override { return hidden_; }
  size_t ffn() const override { return ffn_; }

 private:
  size_t hidden_, ffn_, matrices_;
};

/** Rows of a token batch and the results of some of them; every element tells its row. */
struct TokenBatch {
  TokenBatch(size_t rows, size_t hidden, size_t results) : hidden(hidden), rows(rows * hidden), output(results * hidden) {
    for (size_t i = 0; i < this->rows.size(); ++i) this->rows[i] = static_cast<uint16_t>(i * 7919 + rows);
  }
  ExpertInput input(std::span<const uint32_t> indices, size_t output_row, const float* weights = nullptr) {
    return {.rows = rows.data(),
            .row_count = rows.size() / hidden,
            .indices = indices,
            .output = output.data(),
            .output_row_count = output.size() / hidden,
            .output_row = output_row,
            .input_weights = weights};
  }
  size_t hidden;
  std::vector<uint16_t> rows, output;
};

const ForwardDone ignore = [](const ComputeTime&, std::exception_ptr) {};
const IsPinned all_pinned = [](const void*, size_t) { return true; };
const IsPinned none_pinned = [](const void*, size_t) { return false; };

/** Carries out a plan with host memory in place of the device's: the landing rows, by number. */
std::vector<uint16_t> land(const Plan& plan, size_t hidden) {
  EXPECT_EQ(plan.staged_landing_row, plan.fetched_landing_row + plan.fetched.size());
  const size_t end = plan.staged_landing_row + plan.staged.size();
  std::vector<uint16_t> landing(end * hidden, 0xdead);
  for (const SpanCopy& span : plan.spans) std::copy_n(span.source, span.rows * hidden, landing.begin() + span.landing_row * hidden);
  for (size_t i = 0; i < plan.fetched.size(); ++i) {
    std::copy_n(plan.fetched[i], hidden, landing.begin() + (plan.fetched_landing_row + i) * hidden);
  }
  for (size_t i = 0; i < plan.staged.size(); ++i) {
    std::copy_n(plan.staged[i], hidden, landing.begin() + (plan.staged_landing_row + i) * hidden);
  }
  return landing;
}

/** Checks that every output row of the plan comes from the right row, and goes to the right place once. */
void expect_carries_out(const std::vector<Piece>& pieces, size_t hidden, const IsPinned& pinned) {
  const Plan plan = make_plan(pieces, hidden, pinned);
  const auto landing = land(plan, hidden);
  EXPECT_LE(landing.size() / hidden, landing_rows_per_row * plan.rows);
  std::map<uint16_t*, size_t> row_of_target;
  for (const OutputCopy& copy : plan.outputs) {
    for (size_t i = 0; i < copy.rows; ++i) {
      EXPECT_TRUE(row_of_target.emplace(copy.target + i * hidden, copy.output_row + i).second);
    }
  }
  size_t rows = 0;
  for (const Piece& piece : pieces) {
    const ExpertInput& input = piece.source();
    for (size_t i = piece.first; i < piece.first + piece.count; ++i, ++rows) {
      const auto found = row_of_target.find(input.output + (input.output_row + i) * hidden);
      ASSERT_NE(found, row_of_target.end());
      const size_t row = found->second;
      EXPECT_TRUE(std::equal(input.rows + input.indices[i] * hidden, input.rows + (input.indices[i] + 1) * hidden,
                             landing.begin() + plan.sources[row] * hidden));
      const auto segment = std::find_if(plan.segments.begin(), plan.segments.end(), [row](const Segment& one) {
        return row >= one.output_row && row < one.output_row + one.rows;
      });
      ASSERT_NE(segment, plan.segments.end());
      EXPECT_EQ(segment->expert, piece.call->expert);
      if (segment->direct) {
        EXPECT_EQ(plan.sources[row], segment->landing_row + row - segment->output_row);
      }
      if (!plan.weights.empty()) {
        EXPECT_EQ(plan.weights[row], input.input_weights == nullptr ? 1.0f : input.input_weights[i]);
      }
    }
  }
  EXPECT_EQ(plan.rows, rows);
  EXPECT_EQ(row_of_target.size(), rows);
}

TEST(CudaPlan, CarriesEveryRowWhereItBelongs) {
  std::mt19937 random(5);
  for (int turn = 0; turn < 200; ++turn) {
    const size_t hidden = turn % 2 == 0 ? 16 : 5;
    const SizedExpert experts[] = {SizedExpert(hidden), SizedExpert(hidden), SizedExpert(hidden), SizedExpert(hidden)};
    std::vector<TokenBatch> batches;
    for (int i = 0; i < 3; ++i) batches.emplace_back(40, hidden, 400);
    std::vector<std::vector<uint32_t>> indices;
    std::vector<std::vector<float>> weights;
    std::vector<size_t> next_row(3, 0);
    CallQueue queue(64);
    for (int call = 0; call < 8; ++call) {
      std::vector<uint32_t> chosen;
      for (uint32_t row = 0; row < 40; ++row) {
        if (random() % 4 != 0) chosen.push_back(row);
      }
      indices.push_back(chosen);
      weights.emplace_back(chosen.size(), 0.25f * static_cast<float>(call));
    }
    for (int call = 0; call < 8; ++call) {
      const size_t batch = random() % 3;
      if (next_row[batch] + indices[call].size() > 400) continue;
      const float* const weighs = turn % 5 == 0 && call % 2 == 0 ? weights[call].data() : nullptr;
      queue.push(experts[random() % 4], {batches[batch].input(indices[call], next_row[batch], weighs)}, ignore);
      next_row[batch] += indices[call].size();
    }
    while (!queue.empty()) {
      const auto pieces = queue.take();
      ASSERT_FALSE(pieces.empty());
      // Two of three batches lie in pinned memory.
      const IsPinned some = [&](const void* memory, size_t) {
        const auto* const at = static_cast<const uint16_t*>(memory);
        return !(at >= batches[2].rows.data() && at < batches[2].rows.data() + batches[2].rows.size());
      };
      for (const IsPinned& pinned : {all_pinned, none_pinned, some}) expect_carries_out(pieces, hidden, pinned);
      CallQueue::end(pieces, {}, nullptr);
    }
  }
}

TEST(CudaPlan, UsesPinnedRowsThatFollowOneAnotherAsTheyLie) {
  const SizedExpert expert(16);
  TokenBatch batch(100, 16, 100);
  std::vector<uint32_t> indices(50);
  for (uint32_t i = 0; i < 50; ++i) indices[i] = 10 + i;
  CallQueue queue(64);
  queue.push(expert, {batch.input(indices, 0)}, ignore);
  const auto pieces = queue.take();
  const Plan plan = make_plan(pieces, 16, all_pinned);
  ASSERT_EQ(plan.spans.size(), 1u);
  EXPECT_EQ(plan.spans[0].source, batch.rows.data() + 10 * 16);
  EXPECT_EQ(plan.spans[0].rows, 50u);
  EXPECT_TRUE(plan.staged.empty());
  EXPECT_TRUE(plan.segments[0].direct);
  EXPECT_TRUE(make_plan(pieces, 16, none_pinned).segments[0].direct);
  CallQueue::end(pieces, {}, nullptr);
}

TEST(CudaPlan, LetsTheDeviceFetchPinnedRowsThatLieFarApart) {
  const SizedExpert expert(16);
  TokenBatch batch(1000, 16, 2);
  const std::vector<uint32_t> indices{0, 999};
  CallQueue queue(64);
  queue.push(expert, {batch.input(indices, 0)}, ignore);
  const auto pieces = queue.take();
  const Plan plan = make_plan(pieces, 16, all_pinned);
  EXPECT_TRUE(plan.spans.empty());
  EXPECT_TRUE(plan.staged.empty()) << "the thread that drives the device copies none of them";
  EXPECT_EQ(plan.fetched, (std::vector<const uint16_t*>{batch.rows.data(), batch.rows.data() + 999 * 16}));
  EXPECT_TRUE(plan.segments[0].direct) << "they land side by side";
  EXPECT_EQ(make_plan(pieces, 16, none_pinned).staged.size(), 2u);
  CallQueue::end(pieces, {}, nullptr);
}

TEST(CudaPlan, StagesNoPinnedRowOfMergedChunks) {
  // A worker that has 8 of 64 experts, and calls of each for rows of 4 token batches.
  constexpr size_t hidden = 16, experts_count = 8;
  std::vector<std::unique_ptr<SizedExpert>> experts;
  for (size_t i = 0; i < experts_count; ++i) experts.push_back(std::make_unique<SizedExpert>(hidden));
  std::vector<TokenBatch> batches;
  for (int i = 0; i < 4; ++i) batches.emplace_back(512, hidden, 512 * experts_count);
  std::vector<std::vector<uint32_t>> indices(experts_count * 4);
  CallQueue queue(2048);
  std::mt19937 random(3);
  for (size_t expert = 0; expert < experts_count; ++expert) {
    std::vector<ExpertInput> inputs;
    for (size_t batch = 0; batch < 4; ++batch) {
      auto& chosen = indices[expert * 4 + batch];
      for (uint32_t row = 0; row < 512; ++row) {
        if (random() % experts_count == 0) chosen.push_back(row);
      }
      inputs.push_back(batches[batch].input(chosen, expert * 512));
    }
    queue.push(*experts[expert], inputs, ignore);
  }
  while (!queue.empty()) {
    const auto pieces = queue.take();
    expect_carries_out(pieces, hidden, all_pinned);
    EXPECT_TRUE(make_plan(pieces, hidden, all_pinned).staged.empty());
    CallQueue::end(pieces, {}, nullptr);
  }
}

TEST(CudaPlan, MergesNeighbouringCopies) {
  constexpr size_t hidden = 16;
  const SizedExpert first(hidden), second(hidden);
  TokenBatch batch(100, hidden, 100);
  std::vector<uint32_t> indices(50);
  for (uint32_t i = 0; i < 50; ++i) indices[i] = i;
  const std::span<const uint16_t> rows(batch.rows);
  // Results side by side, of rows that begin at two places.
  const auto half = [&](size_t number) {
    ExpertInput input = batch.input(indices, number * 50);
    input.rows = rows.subspan(number * 50 * hidden).data();
    input.row_count = 50;
    return input;
  };
  CallQueue queue(200);
  queue.push(first, {half(0)}, ignore);
  queue.push(second, {half(1)}, ignore);
  const auto pieces = queue.take();
  expect_carries_out(pieces, hidden, all_pinned);
  const Plan plan = make_plan(pieces, hidden, all_pinned);
  EXPECT_EQ(plan.spans.size(), 1u);
  EXPECT_EQ(plan.outputs.size(), 1u);
  // Memory that was registered in two parts cannot be copied at once.
  const IsPinned in_halves = [&](const void*, size_t bytes) { return bytes <= 50 * hidden * sizeof(uint16_t); };
  const Plan halves = make_plan(pieces, hidden, in_halves);
  EXPECT_EQ(halves.spans.size(), 2u);
  EXPECT_EQ(halves.outputs.size(), 2u);
  CallQueue::end(pieces, {}, nullptr);
}

TEST(CudaPlan, CutsASegmentThatHasNoCompany) {
  EXPECT_EQ(cut_of(2048, 2048, 128), 1024u);
  EXPECT_EQ(cut_of(1900, 2048, 128), 896u) << "whole tiles";
  EXPECT_EQ(cut_of(1024, 2048, 128), 0u) << "the other half of the rows is computed beside it";
  EXPECT_EQ(cut_of(300, 300, 128), 0u) << "too few to fill the device twice";
  EXPECT_EQ(cut_of(1, 1, 128), 0u);
}

TEST(CudaPlan, SharesOutSegmentsEvenlyAndInOrder) {
  EXPECT_EQ(share_out({}, 128, 8), std::vector<size_t>{});
  const auto ends = [](std::vector<size_t> row_counts, size_t lanes) { return share_out(row_counts, 128, lanes); };
  EXPECT_EQ(ends({5}, 8), (std::vector<size_t>{1}));
  EXPECT_EQ(ends({1024, 1024}, 8), (std::vector<size_t>{1, 2}));
  EXPECT_EQ(ends({1000, 1, 1, 1}, 2), (std::vector<size_t>{1, 4}));
  EXPECT_EQ(ends({1, 1, 1, 1000}, 2), (std::vector<size_t>{3, 4}));
  EXPECT_EQ(ends({64, 64, 64, 64}, 2), (std::vector<size_t>{2, 4}));
  // By tiles, of which a small segment fills one too.
  EXPECT_EQ(share_out(std::vector<size_t>{256, 1, 1, 1}, 64, 2), (std::vector<size_t>{1, 4}));
  EXPECT_EQ(share_out(std::vector<size_t>{256, 1, 1, 1}, 256, 2), (std::vector<size_t>{2, 4}));
  std::mt19937 random(7);
  for (int turn = 0; turn < 1000; ++turn) {
    std::vector<size_t> row_counts(1 + random() % 64);
    size_t total = 0, largest = 0;
    for (size_t& rows : row_counts) {
      rows = 128 * (1 + random() % 8);
      total += rows;
      largest = std::max(largest, rows);
    }
    const size_t lanes = 1 + random() % 8;
    const auto shared = share_out(row_counts, 128, lanes);
    ASSERT_EQ(shared.size(), std::min(lanes, row_counts.size()));
    ASSERT_EQ(shared.back(), row_counts.size());
    size_t first = 0;
    for (const size_t end : shared) {
      ASSERT_LT(first, end);
      size_t rows = 0;
      for (; first < end; ++first) rows += row_counts[first];
      EXPECT_LE(rows, total / shared.size() + 3 * largest / 2);
    }
  }
}

TEST(CudaCalls, AreSpreadOverBatchesAndEndOnce) {
  const SizedExpert expert(8), wide(16);
  TokenBatch batch(100, 8, 300), other(10, 16, 10);
  std::vector<uint32_t> indices(100);
  for (uint32_t i = 0; i < 100; ++i) indices[i] = i;
  CallQueue queue(64);
  std::vector<int> ended(4, 0);
  double seconds = 0;
  const auto done = [&](int call) {
    return [&ended, &seconds, call](const ComputeTime& time, std::exception_ptr error) {
      EXPECT_FALSE(error);
      ++ended[call];
      seconds += time.seconds;
    };
  };
  EXPECT_FALSE(queue.push(expert, {}, done(0)));
  EXPECT_TRUE(queue.push(expert, {batch.input(indices, 0)}, done(1)));
  queue.push(expert, {batch.input(std::span(indices).first(30), 100)}, done(2));
  queue.push(wide, {other.input(std::span(indices).first(10), 0)}, done(3));
  std::vector<size_t> sizes;
  while (!queue.empty()) {
    const auto pieces = queue.take();
    size_t rows = 0;
    for (const Piece& piece : pieces) {
      rows += piece.count;
      EXPECT_EQ(piece.call->expert->hidden(), pieces.front().call->expert->hidden());
    }
    sizes.push_back(rows);
    CallQueue::end(pieces, {.seconds = 1}, nullptr);
  }
  EXPECT_EQ(sizes, (std::vector<size_t>{64, 36, 30, 10}));
  EXPECT_EQ(ended, (std::vector<int>{0, 1, 1, 1}));
  EXPECT_NEAR(seconds, 4, 1e-9);
}

TEST(CudaCalls, ShareABatchOnlyWithCallsOfExpertsOfTheirShape) {
  const SizedExpert first(8), alike(8), wider(8, 32), ungated(8, 16, 2);
  TokenBatch batch(10, 8, 40);
  const std::vector<uint32_t> indices{0, 1, 2};
  CallQueue queue(64);
  size_t row = 0;
  for (const Expert* expert : {&first, &alike, &wider, &ungated, &first}) {
    queue.push(*expert, {batch.input(indices, row)}, ignore);
    row += indices.size();
  }
  std::vector<size_t> pieces;
  while (!queue.empty()) {
    const auto taken = queue.take();
    pieces.push_back(taken.size());
    CallQueue::end(taken, {}, nullptr);
  }
  EXPECT_EQ(pieces, (std::vector<size_t>{2, 1, 1, 1}));
}

TEST(CudaCalls, FailWithTheReasonEvenWhenPartlyComputed) {
  const SizedExpert expert(8);
  TokenBatch batch(100, 8, 100);
  std::vector<uint32_t> indices(100, 3);
  CallQueue queue(64);
  int failed = 0;
  queue.push(expert, {batch.input(indices, 0)}, [&](const ComputeTime&, std::exception_ptr error) {
    ASSERT_TRUE(error);
    EXPECT_THROW(std::rethrow_exception(error), Error);
    ++failed;
  });
  const auto under_way = queue.take();
  queue.fail(std::make_exception_ptr(Error(Code::device_lost, "gone")));
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(failed, 0) << "rows are still under way";
  CallQueue::end(under_way, {}, nullptr);
  EXPECT_EQ(failed, 1);
}

TEST(CudaPinnedRegions, HoldWholeRangesOnly) {
  std::vector<char> memory(1000);
  PinnedRegions regions;
  regions.add(memory.data() + 100, 200);
  EXPECT_TRUE(regions.holds(memory.data() + 100, 200));
  EXPECT_TRUE(regions.holds(memory.data() + 299, 1));
  EXPECT_FALSE(regions.holds(memory.data() + 99, 2));
  EXPECT_FALSE(regions.holds(memory.data() + 299, 2));
  EXPECT_FALSE(regions.remove(memory.data() + 101));
  EXPECT_TRUE(regions.remove(memory.data() + 100));
  EXPECT_FALSE(regions.holds(memory.data() + 100, 1));
  regions.add(memory.data(), 10);
  EXPECT_EQ(regions.take_all(), std::vector<void*>{memory.data()});
  EXPECT_FALSE(regions.holds(memory.data(), 1));
}

TEST(CudaLayout, PadsRowsToSixteenBytes) {
  constexpr Shape shape{.hidden = 33, .ffn = 50, .gated = true};
  static_assert(shape.hidden_padded() == 40 && shape.ffn_padded() == 56 && shape.intermediate() == 112);
  static_assert(shape.up_row() == 56 && shape.first_elements() == 112 * 40 && shape.second_elements() == 40 * 56);
  static_assert(columns_within(0, 33) == 8 && columns_within(32, 33) == 1 && columns_within(40, 33) == 0);
}

// The sizes of test/model/device-bytes.test.ts.
TEST(CudaLayout, CountsWhatAnExpertTakesOfTheDevice) {
  static_assert(expert_bytes({.hidden = 4096, .ffn = 1536, .gated = true}) == 37'748'736);
  static_assert(expert_bytes({.hidden = 4096, .ffn = 16384, .gated = false}) == 268'435'456);
  static_assert(expert_bytes({.hidden = 7168, .ffn = 2048, .gated = true}) == 88'080'384);
  static_assert(expert_bytes({.hidden = 2880, .ffn = 2880, .gated = true}) == 50'331'648);
  static_assert(expert_bytes({.hidden = 33, .ffn = 50, .gated = true}) == 13'824);
  static_assert(expert_bytes({.hidden = 512, .ffn = 512, .gated = false}) == 2'097'152);
}

TEST(CudaLayout, ActivatesAsFloat64Does) {
  for (double value = -12; value <= 12; value += 0.0137) {
    const double expected = value / 2 * std::erfc(-value / std::sqrt(2.0));
    EXPECT_NEAR(gelu(static_cast<float>(value)), expected, 1e-6 * std::max(1.0, std::abs(value)));
    EXPECT_NEAR(swiglu(static_cast<float>(value), 3.0f), value / (1 + std::exp(-value)) * 3, 1e-5);
  }
}

TEST(CudaNvml, IsLeftOutWhereItDoesNotKnowTheDevice) {
  EXPECT_EQ(Nvml::open("ffff:ff:ff.7"), nullptr);
  EXPECT_EQ(Nvml::open(""), nullptr);
}

}  // namespace
}  // namespace switchyard::cuda
