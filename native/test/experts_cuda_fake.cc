// The CUDA backend on a device that is not there: whatever order its streams run in, whatever fails.
#include <gtest/gtest.h>

#include <algorithm>
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
constexpr auto lost_within = std::chrono::seconds(1);

/** Two experts of one shape and one of another, whose rows need padding and begin at odd places. */
const Model& model(size_t expert) {
  static const Model models[] = {Model(Activation::swiglu, hidden, 8, 1), Model(Activation::swiglu, hidden, 8, 2), Model(Activation::gelu, hidden - 3, 12, 3)};
  return models[expert];
}

/** [rows_made, hidden of the expert] */
const Rows& input_rows(size_t expert) {
  static const auto made = [](size_t row_elements) {
    std::mt19937 random(4);
    return random_values(rows_made * row_elements, 2.0f, random);
  };
  static const Rows rows = made(hidden), odd_rows = made(hidden - 3);
  return model(expert).hidden == hidden ? rows : odd_rows;
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
  /** Calls of the runtime when a load began and when it had ended. */
  std::vector<std::pair<uint64_t, uint64_t>> loads;
};

/** Rows of a call in slabs, or in memory that the device does not reach. */
class Place {
 public:
  Place(SlabArena& arena, bool pinned, size_t elements) : elements_(elements) {
    if (pinned) slab_ = arena.allocate(elements * sizeof(uint16_t));
    else own_.resize(elements);
    spoil();
  }
  void spoil() { std::fill_n(write(), elements_, poison); }
  /** What the device copies or has copied: whoever touches it must know that it is not at it. */
  uint16_t* write() {
    if (slab_) fake_cuda::host_writes(data(), elements_ * sizeof(uint16_t));
    return data();
  }
  const uint16_t* read() {
    if (slab_) fake_cuda::host_reads(data(), elements_ * sizeof(uint16_t));
    return data();
  }
  uint16_t* data() { return slab_ ? reinterpret_cast<uint16_t*>(slab_->data()) : own_.data(); }

 private:
  size_t elements_;
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
    const Rows& rows = input_rows(wish.expert);
    auto in = std::make_unique<Place>(arena_, wish.pinned_in, rows.size());
    auto out = std::make_unique<Place>(arena_, wish.pinned_out, wish.indices.size() * model(wish.expert).hidden);
    std::copy(rows.begin(), rows.end(), in->write());
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
    const uint16_t* const output = outputs_[number]->read();
    outcome_.outputs[number].assign(output, output + wishes()[number].indices.size() * model(wishes()[number].expert).hidden);
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
        if (expert == experts.size()) {
          const uint64_t before = fake_cuda::report().calls;
          experts.push_back(backend->load(model(expert).source()));
          outcome.loads.emplace_back(before, fake_cuda::report().calls);
        }
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
      const size_t elements = model(wish.expert).hidden;
      const auto begin = input_rows(wish.expert).begin() + wish.indices[row] * elements;
      Rows input(begin, begin + elements);
      if (wish.weighted) {
        for (uint16_t& value : input) value = float_to_bf16(bf16_to_float(value) * weights()[row]);
      }
      EXPECT_LE(relative_error(expected()[i].data() + row * elements, model(wish.expert).reference(input.data())), 5e-2) << "call " << i << ", row " << row;
    }
  }
}

TEST(CudaOnAFake, NeedsNoLuckWhateverOrderTheStreamsRunIn) {
  expected();
  for (const Order order : orders) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      // Every other one with the eight queues of a device, which order streams that have nothing to do with each other.
      fake_cuda::reset({.order = order, .seed = seed, .hardware_queues = seed % 2 == 0 ? size_t{8} : 0});
      ASSERT_EQ(faults(run_calls()), "") << "order " << static_cast<int>(order) << ", seed " << seed;
    }
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
      const auto known = fake_cuda::report().waits;
      waits = std::max<uint64_t>(waits, known.size());
      if (known.size() < wait) continue;
      was_left_out = true;
      found = seen;
      what = known[wait - 1];
    }
    EXPECT_TRUE(!was_left_out || !found.empty()) << "the wait of " << what << ", " << wait << " of " << waits << ", is not needed, or it is not seen that it is";
  }
  EXPECT_GT(waits, 40u) << "so few waits";
}

TEST(CudaOnAFake, EndsEveryCallOnceWhenAnyCallOfTheRuntimeFails) {
  expected();
  fake_cuda::reset({});
  const auto loads = run_calls().loads;
  const uint64_t calls = fake_cuda::report().calls;
  // Most of a load's calls try one number of rows after the other.
  const auto is_tried = [&](uint64_t call, bool for_good) {
    // A lost device is noticed by a look every tenth of a second: not every call has that time here.
    if (for_good) return call % 17 == 0;
    return call % 23 == 0 || std::ranges::none_of(loads, [call](const auto& load) { return call > load.first + 40 && call + 40 < load.second; });
  };
  std::vector<std::chrono::steady_clock::duration> noticed;
  for (const bool for_good : {false, true}) {
    for (uint64_t call = 1; call <= calls; ++call) {
      if (!is_tried(call, for_good)) continue;
      fake_cuda::reset({.order = Order::random, .seed = call, .failing_call = call, .for_good = for_good});
      const auto begun = std::chrono::steady_clock::now();
      const Outcome outcome = run_calls();
      const std::string where = "call " + std::to_string(call) + (for_good ? " for good" : "");
      EXPECT_LT(std::chrono::steady_clock::now() - begun, patience) << where;
      const auto lost_at = fake_cuda::report().lost_at;
      if (for_good && outcome.ended_at > lost_at) noticed.push_back(outcome.ended_at - lost_at);
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

TEST(CudaOnAFake, TakesAnAlgorithmOfTallTilesOnlyIfThereIsNoOther) {
  using enum fake_cuda::Algorithm;
  expected();
  fake_cuda::reset({.algorithms = {steady_in_tall_tiles, steady}});
  EXPECT_EQ(faults(run_calls()), "");
  EXPECT_EQ(fake_cuda::report().products[steady_in_tall_tiles], 0u);
  fake_cuda::reset({.algorithms = {steady_in_tall_tiles}});
  EXPECT_EQ(faults(run_calls()), "");
}

TEST(CudaOnAFake, QueuesNothingBehindWhatRunsOnTheHost) {
  expected();
  fake_cuda::reset({});
  EXPECT_EQ(faults(run_calls()), "");
  EXPECT_EQ(fake_cuda::report().behind_host_functions, 0u);
}

/** The backend, and a way to let calls come together in one batch. */
class Backend {
 public:
  Backend() : backend(create_backend(0, [this](const BatchTimes& times) { ended(times); })) {}

  std::unique_ptr<Expert> load(size_t number) { return backend->load(model(number).source()); }

  /** One call for each expert, all of them in one batch if there is room: a batch before them, of the first one, waits for them. Waits for all. */
  void compute_at_once(const std::vector<const Expert*>& experts, const std::vector<uint32_t>& indices, SlabArena& arena) {
    hold(true);
    run(*experts.front(), indices, arena);
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return held_; });
    }
    for (const Expert* expert : experts) run(*expert, indices, arena);
    hold(false);
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return under_way_ == 0; });
  }

  /** Rows of the batches that ended. */
  std::vector<size_t> batches;

 private:
  void run(const Expert& expert, const std::vector<uint32_t>& indices, SlabArena& arena) {
    const auto rows = std::make_shared<Place>(arena, true, rows_made * expert.hidden());
    const auto output = std::make_shared<Place>(arena, true, indices.size() * expert.hidden());
    const ExpertInput input{.rows = rows->data(), .row_count = rows_made, .indices = indices, .output = output->data(),
                            .output_row_count = indices.size(), .output_row = 0, .input_weights = nullptr};
    {
      const std::lock_guard lock(mutex_);
      ++under_way_;
    }
    backend->submit(expert, {input}, [this, rows, output](const ComputeTime&, std::exception_ptr error) {
      EXPECT_FALSE(error);
      const std::lock_guard lock(mutex_);
      --under_way_;
      changed_.notify_all();
    });
  }

  void hold(bool wanted) {
    const std::lock_guard lock(mutex_);
    hold_ = wanted;
    changed_.notify_all();
  }

  void ended(const BatchTimes& times) {
    std::unique_lock lock(mutex_);
    batches.push_back(times.rows);
    held_ = hold_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !hold_; });
    held_ = false;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool hold_ = false, held_ = false;
  int under_way_ = 0;

 public:
  /** The last, because it uses the others. */
  std::unique_ptr<ExpertBackend> backend;
};

TEST(CudaOnAFake, UsesAllItsStreamsAndAsksForAQueueForEach) {
  fake_cuda::reset({});
  {
    SlabArena arena(size_t{1} << 20);
    Backend device;
    arena.set_listener(device.backend->memory_listener());
    std::vector<std::unique_ptr<Expert>> experts;
    std::vector<const Expert*> pointers;
    for (int i = 0; i < 8; ++i) {
      experts.push_back(device.load(0));
      pointers.push_back(experts.back().get());
    }
    device.compute_at_once(pointers, every(8), arena);
    EXPECT_EQ(device.batches, (std::vector<size_t>{5, 40}));
  }
  const auto report = fake_cuda::report();
  EXPECT_EQ(report.hazards, std::vector<std::string>{});
  EXPECT_EQ(report.streams_unused, 0u);
  ASSERT_TRUE(report.connections);
  EXPECT_LE(report.streams, std::stoul(*report.connections));
}

TEST(CudaOnAFake, CopiesNoTableWhereRowsAreUsedAsTheyLand) {
  fake_cuda::reset({});
  SlabArena arena(size_t{1} << 20);
  Backend device;
  arena.set_listener(device.backend->memory_listener());
  const auto expert = device.load(0);
  const auto copies_for = [&](size_t step) {
    const uint64_t before = fake_cuda::report().copies_in;
    device.compute_at_once({expert.get()}, every(step), arena);
    return fake_cuda::report().copies_in - before;
  };
  EXPECT_EQ(copies_for(1), 2u) << "the rows of two batches";
  EXPECT_EQ(copies_for(2), 4u) << "and tables to gather them by";
  EXPECT_EQ(copies_for(7), 2u) << "tables to fetch rows by, and the rows are used as they land";
}

size_t bytes_in_use() {
  size_t free_bytes = 0, total_bytes = 0;
  EXPECT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  return total_bytes - free_bytes;
}

TEST(CudaOnAFake, KeepsEnoughOfTheDeviceForBatches) {
  fake_cuda::reset({});
  Backend device;
  const size_t before = bytes_in_use();
  const auto expert = device.load(0);
  const Shape shape{.hidden = expert->hidden(), .ffn = expert->ffn(), .gated = true};
  EXPECT_LE(bytes_in_use(), before + expert->bytes() + batch_bytes(shape));
  EXPECT_LE(fake_cuda::report().memory_bytes_max, before + expert->bytes() + batch_bytes(shape)) << "while products were tried";
}

TEST(CudaOnAFake, SaysHowMuchExpertsMayTakeSoThatSoManyCanBeLoadedAndUsed) {
  // 256 MiB for workspaces, a gibibyte for batches, and about one mebibyte for experts.
  fake_cuda::reset({.memory_bytes = (size_t{1} << 30) + (size_t{257} << 20)});
  SlabArena arena(size_t{1} << 20);
  Backend device;
  const size_t room = device.backend->description().memory_bytes;
  EXPECT_LT(room, size_t{1} << 20);
  const Model large(Activation::swiglu, 64, 64, 5);
  std::vector<std::unique_ptr<Expert>> experts;
  size_t bytes = 0;
  do {
    experts.push_back(device.backend->load(large.source()));
    bytes += experts.back()->bytes();
  } while (bytes + experts.back()->bytes() <= room);
  EXPECT_GT(experts.size(), 20u);
  device.compute_at_once({experts.front().get(), experts.back().get()}, every(1), arena);
}

TEST(CudaOnAFake, LetsGoOfExpertsWithoutGivingMemoryBackToTheDevice) {
  fake_cuda::reset({});
  Backend device;
  auto expert = device.load(0);
  const size_t bytes = bytes_in_use();
  const uint64_t frees = fake_cuda::report().frees;
  for (int turn = 0; turn < 3; ++turn) {
    expert.reset();
    EXPECT_EQ(fake_cuda::report().frees, frees) << "to give it back waits for everything that runs";
    expert = device.load(1);
    EXPECT_EQ(bytes_in_use(), bytes) << "the next expert takes it";
  }
}

TEST(CudaOnAFake, GivesBackWhatExpertsLeftIfOneOfAnotherSizeNeedsIt) {
  fake_cuda::reset({});
  Backend device;
  // The first of each size brings the memory of its batches.
  const auto small = device.load(0);
  const Model model(Activation::gelu, 64, 64, 5);
  auto large = device.backend->load(model.source());
  size_t free_bytes = 0, total_bytes = 0;
  ASSERT_EQ(cudaMemGetInfo(&free_bytes, &total_bytes), cudaSuccess);
  void* rest = nullptr;
  ASSERT_EQ(cudaMalloc(&rest, free_bytes), cudaSuccess);
  EXPECT_THROW(device.load(0), Error);
  large.reset();
  EXPECT_NO_THROW(device.load(0));
  cudaFree(rest);
}

TEST(CudaOnAFake, RegistersSlabsBeforeTheyAreNeeded) {
  fake_cuda::reset({});
  SlabArena arena(size_t{64} << 20);
  const auto backend = create_backend(0);
  arena.set_listener(backend->memory_listener());
  std::vector<SlabRef> slabs;
  for (size_t i = 1; i < 40; ++i) slabs.push_back(arena.allocate(i * 20'000));
  for (const SlabRef& slab : slabs) {
    void* address = nullptr;
    EXPECT_EQ(cudaHostGetDevicePointer(&address, slab->data(), 0), cudaSuccess) << slab->size() << " bytes are not registered";
  }
  EXPECT_EQ(fake_cuda::report().registrations, 1u);
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
