// The CUDA backend on device 0 against float64, against the CPU backend, and against itself. Skipped without a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <future>
#include <memory>
#include <random>
#include <span>
#include <thread>
#include <vector>

#include "experts/cuda/cuda_backend.h"
#include "experts_support.h"
#include "memory/slab.h"
#include "runtime/error.h"

namespace switchyard::cuda {
namespace {

using namespace switchyard::test;

std::vector<uint32_t> indices_from(size_t first, size_t count) {
  std::vector<uint32_t> indices(count);
  for (size_t i = 0; i < count; ++i) indices[i] = static_cast<uint32_t>(first + i);
  return indices;
}

ExpertInput input_of(const Rows& rows, size_t hidden, std::span<const uint32_t> indices, Rows& output, const float* weights = nullptr) {
  return {.rows = rows.data(),
          .row_count = rows.size() / hidden,
          .indices = indices,
          .output = output.data(),
          .output_row_count = output.size() / hidden,
          .output_row = 1,
          .input_weights = weights};
}

class CudaExperts : public testing::Test {
 protected:
  void SetUp() override {
    const Description found = describe_devices();
    if (!found.problem.empty()) GTEST_SKIP() << "no CUDA device: " << found.problem << ": compiled, not run";
    backend = create_backend(0);
  }
  std::unique_ptr<ExpertBackend> backend;
};

TEST_F(CudaExperts, MatchFloat64OnRaggedRowCounts) {
  std::random_device fresh;
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    for (const auto& [hidden, ffn] : {std::pair<size_t, size_t>{256, 512}, {333, 577}, {8, 8}, {1, 1}}) {
      // The rounding of a few elements does not average out: each may be off by 2^-8 several times.
      const double allowed = ffn < 64 ? 5e-2 : 1e-2;
      const Model model(activation, hidden, ffn, fresh());
      const auto expert = backend->load(model.source());
      std::mt19937 random(fresh());
      for (const size_t count : {1, 7, 128, 1000, 4096}) {
        const Rows rows = random_values(count * hidden, 2.0f, random);
        const Rows output = forward(*backend, *expert, rows, indices_from(0, count));
        for (size_t row = 0; row < count; row += std::max<size_t>(1, count / 16)) {
          EXPECT_LE(relative_error(output.data() + row * hidden, model.reference(rows.data() + row * hidden)), allowed)
              << "hidden " << hidden << ", ffn " << ffn << ", row " << row << " of " << count;
        }
      }
    }
  }
}

TEST_F(CudaExperts, GiveARowTheSameBitsWhateverIsBesideIt) {
  for (const auto& [hidden, ffn] : {std::pair<size_t, size_t>{96, 160}, {1024, 2816}, {4096, 1536}}) {
    const Model model(Activation::swiglu, hidden, ffn, 3);
    const auto expert = backend->load(model.source());
    std::mt19937 random(11);
    const Rows rows = random_values(1500 * hidden, 2.0f, random);
    const Rows whole = forward(*backend, *expert, rows, indices_from(0, 1500));
    for (const auto& [first, count] : {std::pair<size_t, size_t>{0, 1}, {1499, 1}, {13, 7}, {700, 128}, {256, 1000}}) {
      const Rows part = forward(*backend, *expert, rows, indices_from(first, count));
      EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first * hidden)) << count << " rows from " << first;
    }
    std::vector<uint32_t> backwards = indices_from(0, 1500);
    std::reverse(backwards.begin(), backwards.end());
    const Rows reversed = forward(*backend, *expert, rows, backwards);
    for (size_t row = 0; row < 1500; ++row) {
      ASSERT_TRUE(std::equal(reversed.begin() + row * hidden, reversed.begin() + (row + 1) * hidden, whole.begin() + (1499 - row) * hidden));
    }
  }
}

TEST_F(CudaExperts, ComputeManyRaggedSegmentsAtOnceAsOneByOne) {
  constexpr size_t hidden = 512, ffn = 384, experts_count = 32;
  std::mt19937 random(17);
  std::vector<std::unique_ptr<Expert>> experts;
  for (unsigned i = 0; i < experts_count; ++i) experts.push_back(backend->load(Model(Activation::swiglu, hidden, ffn, i).source()));
  const Rows rows = random_values(1000 * hidden, 2.0f, random);
  std::vector<std::vector<uint32_t>> indices(experts_count);
  std::vector<Rows> outputs;
  for (auto& chosen : indices) {
    const size_t count = 1 + random() % 300;
    for (size_t i = 0; i < count; ++i) chosen.push_back(random() % 1000);
    outputs.emplace_back((count + 2) * hidden, poison);
  }
  std::vector<std::promise<void>> promises(experts_count);
  for (size_t i = 0; i < experts_count; ++i) {
    backend->submit(*experts[i], {input_of(rows, hidden, indices[i], outputs[i])}, [&promises, i](const ComputeTime&, std::exception_ptr error) {
      if (error) promises[i].set_exception(error);
      else promises[i].set_value();
    });
  }
  for (auto& promise : promises) promise.get_future().get();
  for (size_t i = 0; i < experts_count; ++i) {
    const Rows alone = forward(*backend, *experts[i], rows, indices[i]);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), outputs[i].begin() + hidden)) << "expert " << i;
  }
}

TEST_F(CudaExperts, AgreeWithTheCpuWithinOnePercent) {
  const auto cpu = create_cpu_backend(2);
  double worst = 0;
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    const Model model(activation, 512, 1024, 5);
    const auto expert = backend->load(model.source());
    const auto cpu_expert = cpu->load(model.source());
    std::mt19937 random(19);
    const Rows rows = random_values(64 * 512, 2.0f, random);
    std::vector<float> weights(64);
    for (size_t i = 0; i < 64; ++i) weights[i] = 0.1f + 0.01f * static_cast<float>(i);
    for (const float* const weighs : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
      const Rows got = forward(*backend, *expert, rows, indices_from(0, 64), weighs);
      const Rows expected = forward(*cpu, *cpu_expert, rows, indices_from(0, 64), weighs);
      std::vector<double> values;
      for (const uint16_t value : expected) values.push_back(bf16_to_float(value));
      worst = std::max(worst, relative_error(got.data(), values));
    }
  }
  std::printf("CPU and CUDA outputs differ by %.1e relative (allowed 1e-2)\n", worst);
  EXPECT_LE(worst, 1e-2);
}

TEST_F(CudaExperts, KeepNanAndInfinityInTheirRow) {
  const Model model(Activation::gelu, 100, 60, 7);
  const auto expert = backend->load(model.source());
  std::mt19937 random(23);
  Rows rows = random_values(40 * 100, 2.0f, random);
  const Rows clean = forward(*backend, *expert, rows, indices_from(0, 40));
  rows[5 * 100 + 3] = 0x7fc0;
  rows[6 * 100 + 4] = 0x7f80;
  const Rows dirty = forward(*backend, *expert, rows, indices_from(0, 40));
  for (size_t row = 0; row < 40; ++row) {
    if (row == 5 || row == 6) continue;
    EXPECT_TRUE(std::equal(dirty.begin() + row * 100, dirty.begin() + (row + 1) * 100, clean.begin() + row * 100)) << "row " << row;
  }
}

TEST_F(CudaExperts, ComputeFromRegisteredSlabsAsFromOtherMemory) {
  const Model model(Activation::swiglu, 256, 320, 9);
  const auto expert = backend->load(model.source());
  std::mt19937 random(29);
  const Rows rows = random_values(600 * 256, 2.0f, random);
  const auto indices = indices_from(50, 500);
  const Rows expected = forward(*backend, *expert, rows, indices);
  SlabArena arena(size_t{64} << 20);
  arena.set_listener(backend->memory_listener());
  {
    const SlabRef in = arena.allocate(rows.size() * 2), out = arena.allocate(indices.size() * 256 * 2);
    auto* const input = reinterpret_cast<uint16_t*>(in->data());
    auto* const output = reinterpret_cast<uint16_t*>(out->data());
    std::copy(rows.begin(), rows.end(), input);
    std::fill_n(output, expected.size(), poison);
    const ExpertInput call{.rows = input, .row_count = 600, .indices = indices, .output = output, .output_row_count = 500, .output_row = 0, .input_weights = nullptr};
    backend->forward(*expert, {&call, 1});
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), output));
  }
}

/** Computes rows of a registered slab into another one. */
Rows forward_in_slabs(ExpertBackend& backend, const Expert& expert, SlabArena& arena, const Rows& rows, std::span<const uint32_t> indices,
                      const float* weights) {
  const size_t hidden = expert.hidden();
  const SlabRef in = arena.allocate(rows.size() * 2), out = arena.allocate(indices.size() * hidden * 2);
  auto* const input = reinterpret_cast<uint16_t*>(in->data());
  auto* const output = reinterpret_cast<uint16_t*>(out->data());
  std::copy(rows.begin(), rows.end(), input);
  std::fill_n(output, indices.size() * hidden, poison);
  const ExpertInput call{.rows = input,
                         .row_count = rows.size() / hidden,
                         .indices = indices,
                         .output = output,
                         .output_row_count = indices.size(),
                         .output_row = 0,
                         .input_weights = weights};
  backend.forward(expert, {&call, 1});
  return {output, output + indices.size() * hidden};
}

TEST_F(CudaExperts, GatherAndFetchRowsOfRegisteredSlabsAsOfOtherMemory) {
  constexpr size_t row_count = 500;
  SlabArena arena(size_t{64} << 20);
  arena.set_listener(backend->memory_listener());
  std::mt19937 random(31);
  // Rows of 128, 66 and 2 bytes.
  for (const auto& [hidden, ffn] : {std::pair<size_t, size_t>{64, 40}, {33, 50}, {1, 8}}) {
    const Model model(Activation::swiglu, hidden, ffn, 9);
    const auto expert = backend->load(model.source());
    const Rows rows = random_values(row_count * hidden, 2.0f, random);
    // Side by side, every second one, far apart, and in no order.
    for (const size_t step : {1, 2, 9}) {
      std::vector<uint32_t> indices;
      for (size_t row = 3; row < row_count; row += step) indices.push_back(static_cast<uint32_t>(row));
      for (const bool shuffled : {false, true}) {
        if (shuffled) std::shuffle(indices.begin(), indices.end(), random);
        std::vector<float> weights(indices.size());
        for (size_t i = 0; i < weights.size(); ++i) weights[i] = 0.5f + 0.001f * static_cast<float>(i);
        for (const float* const weighs : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
          const Rows expected = forward(*backend, *expert, rows, indices, weighs);
          EXPECT_EQ(forward_in_slabs(*backend, *expert, arena, rows, indices, weighs), expected)
              << "hidden " << hidden << ", every " << step << (shuffled ? ", shuffled" : "") << (weighs ? ", weighted" : "");
        }
      }
    }
  }
}

TEST_F(CudaExperts, LoadAndLetGoBesideCalls) {
  constexpr size_t hidden = 128, ffn = 96, row_count = 700;
  const Model model(Activation::gelu, hidden, ffn, 3);
  const auto expert = backend->load(model.source());
  std::mt19937 random(37);
  const Rows rows = random_values(row_count * hidden, 2.0f, random);
  const auto indices = indices_from(0, row_count);
  const Rows expected = forward(*backend, *expert, rows, indices);
  std::atomic<bool> loading = true;
  std::thread loader([&] {
    for (unsigned turn = 0; turn < 20; ++turn) {
      // Of the same size, and of others, whose products are tried and whose batches need more room.
      const Model other(turn % 2 == 0 ? Activation::gelu : Activation::swiglu, turn % 5 == 4 ? hidden + 8 * turn : hidden, ffn, turn);
      const auto loaded = backend->load(other.source());
      const Rows few(rows.begin(), rows.begin() + 4 * other.hidden);
      const Rows output = forward(*backend, *loaded, few, indices_from(0, 4));
      EXPECT_LE(relative_error(output.data(), other.reference(few.data())), 1e-2) << "turn " << turn;
    }
    loading = false;
  });
  size_t calls = 0;
  for (; loading || calls < 10; ++calls) ASSERT_EQ(forward(*backend, *expert, rows, indices), expected) << "call " << calls;
  loader.join();
}

TEST_F(CudaExperts, RefuseWhatDoesNotFit) {
  const Model model(Activation::gelu, 64, 64, 1);
  const auto expert = backend->load(model.source());
  Rows rows(64), output(64);
  const std::vector<uint32_t> outside{1};
  const ExpertInput input{.rows = rows.data(), .row_count = 1, .indices = outside, .output = output.data(), .output_row_count = 1, .output_row = 0, .input_weights = nullptr};
  EXPECT_THROW(backend->forward(*expert, {&input, 1}), Error);
  EXPECT_THROW(create_backend(999), Error);
  const size_t huge = size_t{1} << 20;
  const auto read = [](size_t, size_t, uint16_t*) {};
  try {
    // A tebibyte for each product.
    backend->load({.activation = Activation::gelu, .gate = std::nullopt, .up = {huge, huge, read}, .down = {huge, huge, read}});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, Code::resource_exhausted);
    EXPECT_NE(std::string(error.what()).find("bytes are free"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace switchyard::cuda
