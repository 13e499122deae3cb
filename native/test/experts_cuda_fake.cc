// The CUDA backend on a device that is not there: whatever order its streams run in, whatever fails.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "experts/cuda/cuda_backend.h"
#include "experts_support.h"
#include "fake_cuda/fake.h"
#include "memory/slab.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

using namespace switchyard::test;
using fake_cuda::Order;

constexpr Order orders[] = {Order::queued, Order::random, Order::late, Order::starved};
constexpr size_t hidden = 8;
constexpr size_t rows_made = 40;
constexpr auto patience = std::chrono::seconds(20);

/** Two experts of one shape and one of another, whose rows need padding. */
const Model& model(size_t expert) {
  static const Model models[] = {Model(Activation::swiglu, hidden, 8, 1), Model(Activation::swiglu, hidden, 8, 2), Model(Activation::gelu, hidden, 12, 3)};
  return models[expert];
}

const Rows& input_rows() {
  static const Rows rows = [] {
    std::mt19937 random(4);
    return random_values(rows_made * hidden, 2.0f, random);
  }();
  return rows;
}

const std::vector<float>& weights() {
  static const std::vector<float> values = [] {
    std::vector<float> made;
    for (size_t i = 0; i < rows_made; ++i) made.push_back(0.25f + 0.03f * static_cast<float>(i));
    return made;
  }();
  return values;
}

std::vector<uint32_t> every(size_t step) {
  std::vector<uint32_t> indices;
  for (size_t i = 0; i < rows_made; i += step) indices.push_back(static_cast<uint32_t>(i));
  return indices;
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
};

/** Rows of a call in slabs, or in memory that the device does not reach. */
class Place {
 public:
  Place(SlabArena& arena, bool pinned, size_t rows) {
    if (pinned) slab_ = arena.allocate(rows * hidden * sizeof(uint16_t));
    else own_.assign(rows * hidden, poison);
  }
  uint16_t* data() { return slab_ ? reinterpret_cast<uint16_t*>(slab_->data()) : own_.data(); }

 private:
  SlabRef slab_;
  Rows own_;
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
    inputs_.push_back(std::make_unique<Place>(arena_, wish.pinned_in, rows_made));
    outputs_.push_back(std::make_unique<Place>(arena_, wish.pinned_out, wish.indices.size()));
    std::copy(input_rows().begin(), input_rows().end(), inputs_.back()->data());
    const ExpertInput input{.rows = inputs_.back()->data(),
                            .row_count = rows_made,
                            .indices = wish.indices,
                            .output = outputs_.back()->data(),
                            .output_row_count = wish.indices.size(),
                            .output_row = 0,
                            .input_weights = wish.weighted ? weights().data() : nullptr};
    ++outcome_.submitted;
    backend_.submit(expert, {input}, [this, number](const ComputeTime&, std::exception_ptr error) { end(number, error); });
  }

  void wait_for(size_t number) {
    std::unique_lock lock(mutex_);
    ended_.wait_for(lock, patience, [&] { return outcome_.endings[number] > 0; });
  }

  /** For all that were submitted. */
  void wait() {
    for (size_t number = 0; number < outputs_.size(); ++number) wait_for(number);
  }

 private:
  void end(size_t number, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    ++outcome_.endings[number];
    outcome_.errors[number] = error;
    const uint16_t* const output = outputs_[number]->data();
    outcome_.outputs[number].assign(output, output + wishes()[number].indices.size() * hidden);
    ended_.notify_all();
  }

  ExpertBackend& backend_;
  SlabArena& arena_;
  Outcome& outcome_;
  std::vector<std::unique_ptr<Place>> inputs_, outputs_;
  std::mutex mutex_;
  std::condition_variable ended_;
};

/** Runs all calls, some after others have ended, and loads an expert before its first one, beside the others. */
Outcome run_calls() {
  Outcome outcome;
  SlabArena arena(size_t{1} << 20);
  try {
    const auto backend = create_backend(0);
    arena.set_listener(backend->memory_listener());
    std::vector<std::unique_ptr<Expert>> experts;
    Calls calls(*backend, arena, outcome);
    try {
      for (size_t number = 0; number < wishes().size(); ++number) {
        const size_t expert = wishes()[number].expert;
        if (expert == experts.size()) experts.push_back(backend->load(model(expert).source()));
        calls.submit(number, *experts[expert]);
        if (number % 3 == 2) calls.wait_for(number - 1);
      }
    } catch (...) {
      outcome.refused = std::current_exception();
    }
    calls.wait();
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

std::string text_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& thrown) {
    return thrown.what();
  }
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

Code code_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& known) {
    return known.code;
  }
}

TEST(CudaOnAFake, ComputesWhatFloat64Does) {
  for (size_t i = 0; i < wishes().size(); ++i) {
    const Wish& wish = wishes()[i];
    for (size_t row = 0; row < wish.indices.size(); ++row) {
      Rows input(input_rows().begin() + wish.indices[row] * hidden, input_rows().begin() + (wish.indices[row] + 1) * hidden);
      if (wish.weighted) {
        for (uint16_t& value : input) value = float_to_bf16(bf16_to_float(value) * weights()[row]);
      }
      EXPECT_LE(relative_error(expected()[i].data() + row * hidden, model(wish.expert).reference(input.data())), 5e-2) << "call " << i << ", row " << row;
    }
  }
}

TEST(CudaOnAFake, NeedsNoLuckWhateverOrderTheStreamsRunIn) {
  expected();
  for (const Order order : orders) {
    for (uint64_t seed = 1; seed <= 50; ++seed) {
      // Every other one with the eight queues of a device, which order streams that have nothing to do with each other.
      fake_cuda::reset({.order = order, .seed = seed, .hardware_queues = seed % 2 == 0 ? size_t{8} : 0});
      ASSERT_EQ(faults(run_calls()), "") << "order " << static_cast<int>(order) << ", seed " << seed;
    }
  }
}

TEST(CudaOnAFake, ShowsEveryWaitThatIsLeftOut) {
  expected();
  for (uint64_t wait = 1;; ++wait) {
    fake_cuda::reset({.order = Order::late, .seed = wait, .ignored_wait = wait});
    const std::string found = faults(run_calls());
    const auto waits = fake_cuda::report().waits;
    if (waits.size() < wait) {
      EXPECT_GT(wait, 10u) << "so few waits";
      break;
    }
    EXPECT_FALSE(found.empty()) << "the wait of " << waits[wait - 1] << ", " << wait << " of " << waits.size() << ", is not needed, or it is not seen that it is";
  }
}

TEST(CudaOnAFake, EndsEveryCallOnceWhenAnyCallOfTheRuntimeFails) {
  expected();
  fake_cuda::reset({});
  run_calls();
  const uint64_t calls = fake_cuda::report().calls;
  for (const bool for_good : {false, true}) {
    // A lost device is noticed by a look every tenth of a second: not every call has that time here.
    for (uint64_t call = 1; call <= calls; call += for_good ? 7 : 1) {
      fake_cuda::reset({.order = Order::random, .seed = call, .failing_call = call, .for_good = for_good});
      const auto begun = std::chrono::steady_clock::now();
      const Outcome outcome = run_calls();
      const std::string where = "call " + std::to_string(call) + (for_good ? " for good" : "");
      EXPECT_LT(std::chrono::steady_clock::now() - begun, patience) << where;
      if (outcome.refused) EXPECT_EQ(code_of(outcome.refused), Code::device_lost) << where << ": " << text_of(outcome.refused);
      for (size_t i = 0; i < outcome.submitted; ++i) {
        EXPECT_EQ(outcome.endings[i], 1) << where << ", call " << i;
        if (outcome.errors[i]) EXPECT_EQ(code_of(outcome.errors[i]), Code::device_lost) << where << ": " << text_of(outcome.errors[i]);
        else EXPECT_EQ(outcome.outputs[i], expected()[i]) << where << ", call " << i;
      }
    }
  }
}

TEST(CudaOnAFake, TakesAnAlgorithmThatGivesARowTheSameBitsWhateverIsBesideIt) {
  using enum fake_cuda::Algorithm;
  expected();
  fake_cuda::reset({.algorithms = {splits_depth, refuses_single_rows, depends_on_rows, steady}});
  EXPECT_EQ(faults(run_calls()), "");
  fake_cuda::reset({.algorithms = {splits_depth, depends_on_rows}});
  const Outcome outcome = run_calls();
  ASSERT_TRUE(outcome.refused);
  EXPECT_NE(text_of(outcome.refused).find("none of 2 cuBLASLt algorithms"), std::string::npos) << text_of(outcome.refused);
}

TEST(CudaOnAFake, RefusesExpertsThatItDoesNotCompute) {
  fake_cuda::reset({});
  const auto backend = create_backend(0);
  const auto refused = [&](ExpertSource source, const std::string& why) {
    try {
      backend->load(source);
      ADD_FAILURE() << why << " is loaded";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  };
  ExpertSource source = model(0).source();
  source.activation = Activation::geglu;
  refused(source, "of another form");
  source = model(0).source();
  source.glu.alpha = 1.702f;
  refused(source, "of another form");
  source = model(0).source();
  source.down_bias = [] { return std::vector<float>(hidden); };
  refused(source, "bias");
}

}  // namespace
}  // namespace switchyard::cuda
