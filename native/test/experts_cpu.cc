// Expert FFNs on the CPU, on every instruction set of this machine, against float64.
#include <atomic>
#include <functional>
#include <future>
#include <limits>
#include <numeric>
#include <thread>

#include "experts_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

using namespace test;

Code code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("allowed"), std::string::npos) << error.what();
    return error.code;
  }
  ADD_FAILURE() << "no error";
  return Code::internal;
}
INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuExperts, testing::ValuesIn(names_of_all()), name_of_isa);

TEST_P(CpuExperts, MatchFloat64ForAnySizes) {
  const size_t sizes[][2] = {{1, 1}, {2, 3}, {31, 33}, {32, 32}, {64, 96}, {100, 40}, {256, 512}, {333, 577}, {1100, 90}, {96, 1200}};
  const auto backend = create_cpu_backend(1);
  EXPECT_EQ(backend->description().detail, GetParam());
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    for (const auto& [hidden, ffn] : sizes) {
      const Model model(activation, hidden, ffn);
      std::mt19937 random(7);
      const Rows rows = random_values(9 * hidden, 2.0f, random);
      const auto expert = backend->load(model.source());
      EXPECT_EQ(expert->hidden(), hidden);
      EXPECT_EQ(expert->ffn(), ffn);
      EXPECT_GE(expert->bytes(), model.up.size() * 2 + model.down.size() * 2);
      const Rows output = forward(*backend, *expert, rows, all_indices(9));
      for (size_t row = 0; row < 9; ++row) {
        const auto expected = model.reference(rows.data() + row * hidden);
        EXPECT_LE(relative_error(output.data() + row * hidden, expected), hidden * ffn < 100 ? 8e-3 : 4e-3)
            << "hidden " << hidden << ", ffn " << ffn << ", row " << row;
      }
    }
  }
}

TEST_P(CpuExperts, GiveARowTheSameBitsWhateverIsBesideIt) {
  constexpr size_t hidden = 96, ffn = 160, count = 300;
  std::mt19937 random(11);
  const Rows rows = random_values(count * hidden, 2.0f, random);
  std::vector<size_t> counts(count);
  std::iota(counts.begin(), counts.end(), 1);
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    expect_the_bits_of_rows_alone(Model(activation, hidden, ffn).source(), rows, counts, random);
  }
}

TEST_P(CpuExperts, GiveTheSameBitsAcrossBlocksOfRowsAndDepth) {
  constexpr size_t hidden = 1120, ffn = 1056, count = 1100;
  std::mt19937 random(13);
  const Rows rows = random_values(count * hidden, 2.0f, random);
  const Model model(Activation::swiglu, hidden, ffn);
  const auto backend = create_cpu_backend(3);
  const auto expert = backend->load(model.source());
  const Rows together = forward(*backend, *expert, rows, all_indices(count));
  const auto single = create_cpu_backend(1);
  const auto single_expert = single->load(model.source());
  for (uint32_t row = 0; row < count; row += 37) {
    const Rows alone = forward(*single, *single_expert, rows, {row});
    ASSERT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * hidden)) << "row " << row;
  }
}

TEST_P(CpuExperts, KeepNanAndInfinityInTheirRow) {
  constexpr size_t hidden = 70, ffn = 50, count = 13;
  std::mt19937 random(17);
  const Rows clean = random_values(count * hidden, 2.0f, random);
  Rows mixed = clean;
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(), 3e38f};
  for (size_t i = 0; i < 4; ++i) mixed[(3 * i + 1) * hidden + 5 * i] = float_to_bf16(bad[i]);
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    const Model model(activation, hidden, ffn);
    const auto backend = create_cpu_backend(2);
    const auto expert = backend->load(model.source());
    const Rows expected = forward(*backend, *expert, clean, all_indices(count));
    const Rows output = forward(*backend, *expert, mixed, all_indices(count));
    for (size_t row = 0; row < count; ++row) {
      const bool spoilt = row % 3 == 1 && row < 12;
      const bool same = std::equal(output.begin() + row * hidden, output.begin() + (row + 1) * hidden, expected.begin() + row * hidden);
      EXPECT_EQ(same, !spoilt) << "row " << row;
    }
    for (size_t i = 0; i < hidden; ++i) EXPECT_TRUE(std::isnan(bf16_to_float(output[hidden + i]))) << "column " << i;
  }
}

TEST_P(CpuExperts, KeepAnInfiniteIntermediateInfinite) {
  // One input element and all weights positive: the output is +infinity, although padding multiplies zeros.
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    Model model(activation, 3, 5);
    for (Rows* matrix : {&model.gate, &model.up, &model.down}) std::fill(matrix->begin(), matrix->end(), float_to_bf16(0.5f));
    const auto backend = create_cpu_backend(1);
    const auto expert = backend->load(model.source());
    const Rows row = {float_to_bf16(std::numeric_limits<float>::infinity()), float_to_bf16(1.0f), float_to_bf16(2.0f)};
    for (const uint16_t value : forward(*backend, *expert, row, {0})) EXPECT_EQ(bf16_to_float(value), std::numeric_limits<float>::infinity());
  }
}

TEST_P(CpuExperts, ActivationsHoldOverTheWholeRange) {
  // Hidden 1 and ffn 1 with weights 1: the output is the activation itself (swiglu: silu(x) * x).
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    Model model(activation, 1, 1);
    model.gate = model.up = model.down = {float_to_bf16(1.0f)};
    const auto backend = create_cpu_backend(1);
    const auto expert = backend->load(model.source());
    Rows rows;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const float value = bf16_to_float(static_cast<uint16_t>(bits));
      if (std::isfinite(value) && std::abs(value) < 1e18f) rows.push_back(static_cast<uint16_t>(bits));
    }
    const Rows output = forward(*backend, *expert, rows, all_indices(rows.size()));
    for (size_t i = 0; i < rows.size(); ++i) {
      const double expected = model.reference(&rows[i])[0];
      // Beyond 88.7 exp() is infinite in float32 and silu() zero; below the smallest normal float a set may flush.
      const double allowed = std::abs(expected) * 0x1p-8 + 1e-34;
      ASSERT_NEAR(bf16_to_float(output[i]), expected, allowed) << "x = " << bf16_to_float(rows[i]);
    }
  }
}

TEST_P(CpuExperts, WeighInputsAndServeManyInputsAtOnce) {
  constexpr size_t hidden = 64, ffn = 96;
  std::mt19937 random(19);
  const Model model(Activation::swiglu, hidden, ffn);
  const auto backend = create_cpu_backend(2);
  const auto expert = backend->load(model.source());
  const Rows first = random_values(20 * hidden, 2.0f, random);
  const Rows second = random_values(5 * hidden, 2.0f, random);
  const std::vector<uint32_t> first_indices = {19, 0, 7, 7, 3}, second_indices = {4, 1};
  const std::vector<float> weights = {0.25f, 0.3f};
  Rows weighted = second;
  for (size_t i = 0; i < 2; ++i) {
    for (size_t k = 0; k < hidden; ++k) {
      uint16_t& value = weighted[second_indices[i] * hidden + k];
      value = float_to_bf16(bf16_to_float(value) * weights[i]);
    }
  }
  const Rows expected_first = forward(*backend, *expert, first, first_indices);
  const Rows expected_second = forward(*backend, *expert, weighted, second_indices);
  EXPECT_EQ(forward(*backend, *expert, second, second_indices, weights.data()), expected_second);

  Rows output(8 * hidden, poison);
  const std::vector<ExpertInput> inputs = {
      {.rows = second.data(), .row_count = 5, .indices = second_indices, .output = output.data(), .output_row_count = 8, .output_row = 5, .input_weights = weights.data()},
      {.rows = nullptr, .row_count = 0, .indices = {}, .output = nullptr, .output_row_count = 0, .output_row = 0, .input_weights = nullptr},
      {.rows = first.data(), .row_count = 20, .indices = first_indices, .output = output.data(), .output_row_count = 8, .output_row = 0, .input_weights = nullptr}};
  backend->forward(*expert, inputs);
  EXPECT_TRUE(std::equal(expected_first.begin(), expected_first.end(), output.begin()));
  EXPECT_TRUE(std::equal(expected_second.begin(), expected_second.end(), output.begin() + 5 * hidden));
  EXPECT_TRUE(std::all_of(output.begin() + 7 * hidden, output.end(), [](uint16_t value) { return value == poison; }));
  EXPECT_GE(backend->forward(*expert, {}), 0.0);
}

TEST_P(CpuExperts, ServeCallersOnSeveralThreads) {
  constexpr size_t hidden = 128, ffn = 64;
  std::mt19937 random(23);
  const Model model(Activation::gelu, hidden, ffn);
  const auto backend = create_cpu_backend(2);
  const auto expert = backend->load(model.source());
  const Rows rows = random_values(40 * hidden, 2.0f, random);
  const Rows expected = forward(*backend, *expert, rows, all_indices(40));
  std::vector<Rows> outputs(4);
  std::vector<std::thread> callers;
  for (Rows& output : outputs) {
    callers.emplace_back([&] {
      for (int turn = 0; turn < 20; ++turn) output = forward(*backend, *backend->load(model.source()), rows, all_indices(40));
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const Rows& output : outputs) EXPECT_EQ(output, expected);
}

TEST_P(CpuExperts, AreBriefForFewRowsOfSmallOnesTogether) {
  std::mt19937 random(31);
  const Model model(Activation::swiglu, 64, 96);
  const Rows rows = random_values(1000 * 64, 2.0f, random);
  const auto backend = create_cpu_backend(2);
  const auto expert = backend->load(model.source());
  const auto is_brief = [&](size_t calls, size_t rows_each) {
    const std::vector<uint32_t> indices(rows_each);
    const ExpertInput input{.rows = rows.data(), .row_count = 1000, .indices = indices, .output = nullptr};
    return backend->is_brief(std::vector<ExpertCall>(calls, {*expert, {&input, 1}}));
  };
  EXPECT_TRUE(is_brief(1, 1));
  EXPECT_TRUE(is_brief(56, 3));
  EXPECT_FALSE(is_brief(57, 1));
  EXPECT_FALSE(is_brief(1, 300));
  const auto other = create_cpu_backend(1);
  const Model large(Activation::gelu, 800, 800);
  const auto large_expert = other->load(large.source());
  const std::vector<uint32_t> one = {0};
  const ExpertInput input{.rows = rows.data(), .row_count = 1, .indices = one, .output = nullptr};
  EXPECT_FALSE(other->is_brief(std::vector<ExpertCall>{{*large_expert, {&input, 1}}}));
}

TEST_P(CpuExperts, GiveTheSameBitsToCallersThatWaitAndToThoseThatDoNot) {
  constexpr size_t hidden = 64, ffn = 96, count = 2'000;
  std::mt19937 random(37);
  const Rows rows = random_values(count * hidden, 2.0f, random);
  const Model model(Activation::swiglu, hidden, ffn);
  const auto backend = create_cpu_backend(2);
  const auto expert = backend->load(model.source());
  const std::vector<uint32_t> indices = all_indices(count);
  const Rows expected = forward(*backend, *expert, rows, indices);
  std::vector<Rows> outputs(8, Rows(count * hidden, poison));
  const auto input = [&](Rows& output) {
    return ExpertInput{.rows = rows.data(), .row_count = count, .indices = indices, .output = output.data(), .output_row_count = count};
  };
  // Half of them on the backend's thread, and half on this one meanwhile.
  std::atomic<size_t> ended = 0;
  std::promise<void> last;
  for (size_t i = 0; i < 4; ++i) {
    backend->submit(*expert, {input(outputs[i])}, [&, i](const ComputeTime&, std::exception_ptr error) {
      EXPECT_FALSE(error);
      EXPECT_EQ(ended++, i);
      if (i == 3) last.set_value();
    });
  }
  for (size_t i = 4; i < outputs.size(); ++i) {
    const ExpertInput one = input(outputs[i]);
    backend->forward(*expert, {&one, 1});
  }
  last.get_future().wait();
  for (const Rows& output : outputs) EXPECT_EQ(output, expected);
}

TEST(CpuExpertErrors, NameTheFieldAndWhatIsAllowed) {
  EXPECT_EQ(code_of([] { create_cpu_backend(0); }), Code::invalid_argument);
  EXPECT_EQ(code_of([] { create_cpu_backend(1025); }), Code::invalid_argument);
  setenv("SWITCHYARD_CPU_ISA", "sse2", 1);
  EXPECT_EQ(code_of([] { create_cpu_backend(1); }), Code::config_invalid);
  unsetenv("SWITCHYARD_CPU_ISA");

  const auto backend = create_cpu_backend(1);
  const Model model(Activation::swiglu, 8, 16);
  const Model other(Activation::gelu, 9, 16);
  const auto rejects = [&](ExpertSource source) { return code_of([&] { backend->load(source); }); };
  ExpertSource source = model.source();
  source.gate.reset();
  EXPECT_EQ(rejects(source), Code::invalid_argument);
  source = model.source();
  source.activation = Activation::gelu;
  EXPECT_EQ(rejects(source), Code::invalid_argument);
  source = model.source();
  source.down = other.source().down;
  EXPECT_EQ(rejects(source), Code::invalid_argument);
  source = model.source();
  source.up.read = nullptr;
  EXPECT_EQ(rejects(source), Code::invalid_argument);
  source = model.source();
  source.up.rows = 0;
  EXPECT_EQ(rejects(source), Code::invalid_argument);
}

TEST(CpuExpertErrors, RefuseRowsOutsideAndWriteNothing) {
  const auto backend = create_cpu_backend(1);
  const Model model(Activation::swiglu, 8, 16);
  const auto expert = backend->load(model.source());
  const Rows rows(3 * 8, float_to_bf16(1.0f));
  Rows output(2 * 8, poison);
  const std::vector<uint32_t> good = {0, 1}, outside = {0, 3};
  const ExpertInput valid{.rows = rows.data(), .row_count = 3, .indices = good, .output = output.data(), .output_row_count = 2, .output_row = 0, .input_weights = nullptr};
  std::vector<ExpertInput> bad(5, valid);
  bad[0].indices = outside;
  bad[1].output_row = 1;
  bad[2].output_row = std::numeric_limits<size_t>::max();
  bad[3].rows = nullptr;
  bad[4].output = nullptr;
  for (const ExpertInput& input : bad) {
    const ExpertInput both[] = {valid, input};
    EXPECT_EQ(code_of([&] { backend->forward(*expert, both); }), Code::invalid_argument);
  }
  EXPECT_EQ(output, Rows(2 * 8, poison));
}

TEST(CpuExpertErrors, PassOnWhatReadingThrows) {
  const auto backend = create_cpu_backend(1);
  const Model model(Activation::gelu, 8, 16);
  ExpertSource source = model.source();
  source.down.read = [](size_t, size_t, uint16_t*) { throw Error(Code::data_loss, "the file is shorter than it says"); };
  EXPECT_THROW(backend->load(source), Error);
}

}  // namespace
}  // namespace switchyard
