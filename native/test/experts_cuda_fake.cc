// The CUDA backend on a device that is not there: whatever order its streams run in, whatever fails.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "experts_cuda_fake_support.h"

namespace switchyard::cuda::test {
namespace {

using fake_cuda::Order;

constexpr auto lost_within = std::chrono::seconds(1);

const std::vector<float>& weights() {
  static const std::vector<float> values = [] {
    std::vector<float> made;
    for (size_t i = 0; i < rows_made; ++i) made.push_back(0.25f + 0.03f * static_cast<float>(i));
    return made;
  }();
  return values;
}

struct Wish {
  size_t expert;
  std::vector<uint32_t> indices;
  bool weighted;
  bool pinned_in, pinned_out;
};

const std::vector<Wish>& wishes() {
  static const std::vector<Wish> all = {
      {0, every(1), false, true, true},  {1, every(3), true, true, false},  {0, every(2), false, false, true},
      {2, every(1), false, true, true},  {1, every(1), false, true, true},  {0, every(7), true, false, false},
      {0, every(1), false, false, true}, {2, every(2), false, true, false}, {1, every(1), false, true, true},
      // Rows far apart, in slabs and not, for one batch.
      {1, every(7), false, true, true},  {0, every(5), true, true, true},   {2, every(7), true, true, false},
      {2, every(3), false, true, true},  {0, every(9), false, false, true}, {1, every(1), false, true, true},
  };
  return all;
}

/** What became of the wishes. */
struct Outcome {
  std::vector<Rows> outputs;
  std::vector<std::exception_ptr> errors;
  std::vector<int> endings;
  /** The first of them; the others were not submitted for what is in `refused`. */
  size_t submitted = 0;
  /** What creating the backend or loading an expert threw. */
  std::exception_ptr refused;
  /** When the last call ended. */
  std::chrono::steady_clock::time_point ended_at{};
};

class Calls {
 public:
  Calls(ExpertBackend& backend, SlabArena& arena, Outcome& outcome) : backend_(backend), arena_(arena), outcome_(outcome) {
    outcome.errors.resize(wishes().size());
    outcome.endings.resize(wishes().size());
    outcome.outputs.resize(wishes().size());
  }

  void submit(size_t number, const Expert& expert) {
    const Wish& wish = wishes()[number];
    const Rows& rows = input_rows(model(wish.expert).hidden);
    auto in = std::make_unique<Place>(arena_, wish.pinned_in, rows.size());
    auto out = std::make_unique<Place>(arena_, wish.pinned_out, wish.indices.size() * model(wish.expert).hidden);
    in->write(rows);
    const ExpertInput input{.rows = in->data(),
                            .row_count = rows_made,
                            .indices = wish.indices,
                            .output = out->data(),
                            .output_row_count = wish.indices.size(),
                            .output_row = 0,
                            .input_weights = wish.weighted ? weights().data() : nullptr};
    {
      const std::lock_guard lock(mutex_);
      inputs_.push_back(std::move(in));
      outputs_.push_back(std::move(out));
    }
    ++outcome_.submitted;
    backend_.submit(expert, {input}, [this, number](const ComputeTime&, std::exception_ptr error) { end(number, error); });
  }

  void wait_for(size_t number) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, patience, [&] { return outcome_.endings[number] > 0; });
  }

  /** When the last one did. */
  std::chrono::steady_clock::time_point ended_at{};

  /** For all that were submitted. */
  void wait() {
    for (size_t number = 0; number < outputs_.size(); ++number) wait_for(number);
  }

 private:
  void end(size_t number, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    ++outcome_.endings[number];
    outcome_.errors[number] = error;
    outcome_.outputs[number] = outputs_[number]->read();
    // The memory is the caller's again: what is read or written from now on comes to light.
    inputs_[number]->spoil();
    outputs_[number]->spoil();
    ended_at = std::chrono::steady_clock::now();
    ended_.notify_all();
  }

  ExpertBackend& backend_;
  SlabArena& arena_;
  Outcome& outcome_;
  std::vector<std::unique_ptr<Place>> inputs_, outputs_;
  std::mutex mutex_;
  std::condition_variable ended_;
};

/** An expert is dropped before this call, and loaded again beside the others. */
constexpr size_t call_of_new_copy = 8;
static_assert(call_of_new_copy % 3 == 2, "loads run beside calls that have just begun");

/** Runs all calls, some after others have ended, and loads an expert before its first one, beside the others. */
Outcome run_calls() {
  Outcome outcome;
  SlabArena arena(size_t{256} << 10);
  try {
    const auto backend = create_backend(0);
    arena.set_listener(backend->memory_listener());
    std::vector<std::unique_ptr<Expert>> experts;
    Calls calls(*backend, arena, outcome);
    try {
      for (size_t number = 0; number < wishes().size(); ++number) {
        const size_t expert = wishes()[number].expert;
        if (number == call_of_new_copy) {
          for (size_t i = 0; i < number; ++i) {
            if (wishes()[i].expert == expert) calls.wait_for(i);
          }
          experts[expert].reset();
          experts[expert] = backend->load(model(expert).source());
        }
        if (expert == experts.size()) experts.push_back(backend->load(model(expert).source()));
        calls.submit(number, *experts[expert]);
        if (number % 3 == 2) calls.wait_for(number - 1);
      }
    } catch (...) {
      outcome.refused = std::current_exception();
    }
    calls.wait();
    outcome.ended_at = calls.ended_at;
  } catch (...) {
    outcome.refused = std::current_exception();
  }
  return outcome;
}

const std::vector<Rows>& expected() {
  static const std::vector<Rows> outputs = [] {
    fake_cuda::reset({});
    return run_calls().outputs;
  }();
  return outputs;
}

/** What is wrong with a run in which nothing failed; empty: nothing. */
std::string faults(const Outcome& outcome) {
  std::string text;
  for (const std::string& hazard : fake_cuda::report().hazards) text += hazard + "\n";
  if (outcome.refused) return text + text_of(outcome.refused);
  for (size_t i = 0; i < wishes().size(); ++i) {
    const std::string call = "call " + std::to_string(i);
    if (outcome.endings[i] != 1) text += call + " has ended " + std::to_string(outcome.endings[i]) + " times\n";
    if (outcome.errors[i]) text += call + ": " + text_of(outcome.errors[i]) + "\n";
    else if (outcome.outputs[i] != expected()[i]) text += call + " has other bits\n";
  }
  return text;
}

TEST(CudaOnAFake, ComputesWhatFloat64Does) {
  for (size_t i = 0; i < wishes().size(); ++i) {
    const Wish& wish = wishes()[i];
    for (size_t row = 0; row < wish.indices.size(); ++row) {
      const size_t elements = model(wish.expert).hidden;
      const auto begin = input_rows(elements).begin() + wish.indices[row] * elements;
      Rows input(begin, begin + elements);
      if (wish.weighted) {
        for (uint16_t& value : input) value = float_to_bf16(bf16_to_float(value) * weights()[row]);
      }
      EXPECT_LE(relative_error(expected()[i].data() + row * elements, model(wish.expert).reference(input.data())), 5e-2) << "call " << i << ", row " << row;
    }
  }
}

std::string name_of(const testing::TestParamInfo<Order>& order) {
  constexpr const char* names[] = {"queued", "random", "late", "starved"};
  return names[static_cast<size_t>(order.param)];
}

class CudaOnAFakeInOrder : public testing::TestWithParam<Order> {};
INSTANTIATE_TEST_SUITE_P(Orders, CudaOnAFakeInOrder, testing::ValuesIn(orders), name_of);

TEST_P(CudaOnAFakeInOrder, NeedsNoLuck) {
  expected();
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    // Every other one with the eight queues of a device, which order streams that have nothing to do with each other.
    fake_cuda::reset({.order = GetParam(), .seed = seed, .hardware_queues = seed % 2 == 0 ? size_t{8} : 0});
    ASSERT_EQ(faults(run_calls()), "") << "seed " << seed;
  }
}

TEST(CudaOnAFake, ShowsEveryWaitThatIsLeftOut) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "without a wait threads do race, and the sanitizer says so";
#endif
  expected();
  // All between streams are seen in any order; but when the driving thread comes to a batch's end it may have been told of a later one too,
  // and know by luck what it should have waited for.
  constexpr uint64_t tries = 64;
  uint64_t waits = 0;
  for (uint64_t wait = 1; wait <= std::max<uint64_t>(waits, 1); ++wait) {
    std::string found, what;
    // Not every run has as many waits.
    bool was_left_out = false;
    for (uint64_t turn = 0; turn < tries && found.empty(); ++turn) {
      fake_cuda::reset({.order = orders[(wait + turn) % std::size(orders)], .seed = wait * tries + turn, .ignored_wait = wait});
      const std::string seen = faults(run_calls());
      const auto report = fake_cuda::report();
      waits = std::max(waits, report.waits);
      if (report.ignored_wait.empty()) continue;
      was_left_out = true;
      found = seen;
      what = report.ignored_wait;
    }
    EXPECT_TRUE(!was_left_out || !found.empty()) << "the wait of " << what << ", " << wait << " of " << waits << ", is not needed, or it is not seen that it is";
  }
  EXPECT_GT(waits, 40u) << "so few waits";
}

TEST(CudaOnAFake, EndsEveryCallOnceWhenAnyCallOfTheRuntimeFails) {
  expected();
  fake_cuda::reset({});
  run_calls();
  const uint64_t calls = fake_cuda::report().calls;
  std::vector<std::chrono::steady_clock::duration> noticed;
  for (const bool for_good : {false, true}) {
    for (uint64_t call = 1; call <= calls; ++call) {
      fake_cuda::reset({.order = Order::random, .seed = call, .failing_call = call, .for_good = for_good});
      const auto begun = std::chrono::steady_clock::now();
      const Outcome outcome = run_calls();
      const std::string where = "call " + std::to_string(call) + (for_good ? " for good" : "");
      EXPECT_LT(std::chrono::steady_clock::now() - begun, patience) << where;
      // Not every run has as many calls.
      const auto lost_at = fake_cuda::report().lost_at;
      if (lost_at && outcome.ended_at > *lost_at) noticed.push_back(outcome.ended_at - *lost_at);
      // A device that goes on must not touch what has been given back to the caller.
      if (!for_good) {
        EXPECT_EQ(fake_cuda::report().hazards, std::vector<std::string>{}) << where;
      }
      if (outcome.refused) {
        EXPECT_EQ(code_of(outcome.refused), Code::device_lost) << where << ": " << text_of(outcome.refused);
      }
      for (size_t i = 0; i < outcome.submitted; ++i) {
        EXPECT_EQ(outcome.endings[i], 1) << where << ", call " << i;
        if (outcome.errors[i]) EXPECT_EQ(code_of(outcome.errors[i]), Code::device_lost) << where << ": " << text_of(outcome.errors[i]);
        else EXPECT_EQ(outcome.outputs[i], expected()[i]) << where << ", call " << i;
      }
    }
  }
  // Of most runs: the machine may be busy with other things for a while.
  ASSERT_FALSE(noticed.empty());
  std::ranges::sort(noticed);
  EXPECT_LT(noticed[noticed.size() * 3 / 4], lost_within);
}

TEST(CudaOnAFake, TakesAnAlgorithmThatGivesARowTheSameBitsWhateverIsBesideIt) {
  using enum fake_cuda::Algorithm;
  expected();
  fake_cuda::reset({.algorithms = {splits_depth, refuses_single_rows, depends_on_rows, differs_at_37_rows, steady}});
  EXPECT_EQ(faults(run_calls()), "");
  for (const fake_cuda::Algorithm unsteady : {depends_on_rows, differs_at_37_rows}) {
    fake_cuda::reset({.algorithms = {splits_depth, unsteady}});
    const Outcome outcome = run_calls();
    ASSERT_TRUE(outcome.refused);
    EXPECT_NE(text_of(outcome.refused).find("none of 2 cuBLASLt algorithms"), std::string::npos) << text_of(outcome.refused);
  }
}

TEST(CudaOnAFake, EndsTheTrialOfAnAlgorithmSoonAfterItsFirstWrongNumberOfRows) {
  using enum fake_cuda::Algorithm;
  fake_cuda::reset({.algorithms = {depends_on_rows, steady}});
  const auto backend = create_backend(0);
  backend->load(model(0).source());
  // Two products.
  EXPECT_LT(fake_cuda::report().products[depends_on_rows], 2 * batch_rows_max);
  EXPECT_EQ(fake_cuda::report().products[steady], 2 * batch_rows_max);
}

TEST(CudaOnAFake, TakesAnAlgorithmOfTallTilesOnlyIfThereIsNoOther) {
  using enum fake_cuda::Algorithm;
  expected();
  fake_cuda::reset({.algorithms = {steady_in_tall_tiles, steady}});
  EXPECT_EQ(faults(run_calls()), "");
  EXPECT_EQ(fake_cuda::report().products[steady_in_tall_tiles], 0u);
  fake_cuda::reset({.algorithms = {steady_in_tall_tiles, steady_in_wide_tiles, steady}});
  EXPECT_EQ(faults(run_calls()), "");
  EXPECT_EQ(fake_cuda::report().products[steady], 0u) << "the first whose tiles have few enough rows, whatever else their size";
  fake_cuda::reset({.algorithms = {steady_in_tall_tiles}});
  EXPECT_EQ(faults(run_calls()), "");
}

TEST(CudaOnAFake, QueuesNothingBehindWhatRunsOnTheHost) {
  expected();
  fake_cuda::reset({});
  EXPECT_EQ(faults(run_calls()), "");
  EXPECT_EQ(fake_cuda::report().behind_host_functions, 0u);
}

}  // namespace
}  // namespace switchyard::cuda::test
