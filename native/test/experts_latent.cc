// Experts between linear maps that those of a layer share, on every instruction set of this machine, against float64.
#include <functional>
#include <limits>

#include "experts_support.h"
#include "runtime/error.h"

namespace switchyard {
namespace {

using namespace test;

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuExperts, testing::ValuesIn(names_of_all()), name_of_isa);

/** An expert of `own.hidden` columns between maps from and to `hidden` ones. */
struct LatentModel {
  size_t hidden;
  Model own;
  Rows input, output;
  std::vector<float> bias;

  LatentModel(Activation activation, size_t hidden_size, size_t latent, size_t ffn) : hidden(hidden_size), own(activation, latent, ffn) {
    std::mt19937 random(5);
    input = random_values(latent * hidden, 2.0f / std::sqrt(static_cast<float>(hidden)), random);
    output = random_values(hidden * latent, 2.0f / std::sqrt(static_cast<float>(latent)), random);
    for (const uint16_t value : random_values(latent, 0.5f, random)) bias.push_back(bf16_to_float(value));
  }

  ExpertSource source() const {
    ExpertSource source = own.source();
    source.latent = LatentSource{.key = "a layer",
                                 .input = source_of(input, own.hidden, hidden),
                                 .output = source_of(output, hidden, own.hidden),
                                 .input_bias = [this] { return bias; }};
    return source;
  }

  std::vector<double> reference(const uint16_t* row) const {
    std::vector<double> x(hidden), latent(own.hidden), y(hidden);
    for (size_t i = 0; i < hidden; ++i) x[i] = bf16_to_float(row[i]);
    for (size_t i = 0; i < latent.size(); ++i) latent[i] = own.dot(input, i, x) + bias[i];
    const std::vector<double> results = own.reference(latent);
    for (size_t i = 0; i < hidden; ++i) y[i] = own.dot(output, i, results);
    return y;
  }
};

TEST_P(CpuExperts, MatchFloat64BetweenMapsOfAnySizes) {
  const size_t sizes[][3] = {{1, 1, 1}, {3, 2, 5}, {33, 31, 40}, {64, 32, 96}, {100, 70, 33}, {40, 129, 20}, {600, 96, 160}, {1100, 333, 90}};
  const auto backend = create_cpu_backend(1);
  for (const Activation activation : {Activation::swiglu, Activation::gelu}) {
    for (const auto& [hidden, latent, ffn] : sizes) {
      const LatentModel model(activation, hidden, latent, ffn);
      std::mt19937 random(7);
      const Rows rows = random_values(9 * hidden, 2.0f, random);
      const auto expert = backend->load(model.source());
      EXPECT_EQ(expert->hidden(), hidden);
      EXPECT_EQ(expert->ffn(), ffn);
      const Rows output = forward(*backend, *expert, rows, all_indices(9));
      for (size_t row = 0; row < 9; ++row) {
        // Rounded to BF16 three times on the way, by 2^-8 at most each; sums of few products may cancel.
        EXPECT_LE(relative_error(output.data() + row * hidden, model.reference(rows.data() + row * hidden)), latent * ffn < 2000 ? 0x1p-5 : 8e-3)
            << "hidden " << hidden << ", latent " << latent << ", ffn " << ffn << ", row " << row;
      }
    }
  }
}

TEST_P(CpuExperts, GiveARowBetweenMapsTheSameBitsWhateverIsBesideIt) {
  constexpr size_t hidden = 130, count = 300;
  std::mt19937 random(11);
  const Rows rows = random_values(count * hidden, 2.0f, random);
  const LatentModel model(Activation::gelu, hidden, 70, 100);
  std::vector<size_t> counts;
  for (size_t some = 1; some <= 2 * count; some += some < 40 ? 1 : 37) counts.push_back(some);
  expect_the_bits_of_rows_alone(model.source(), rows, counts, random);
}

TEST_P(CpuExperts, KeepNanAndInfinityBetweenMapsInTheirRow) {
  constexpr size_t hidden = 50, count = 7;
  std::mt19937 random(17);
  const Rows clean = random_values(count * hidden, 2.0f, random);
  Rows mixed = clean;
  mixed[1 * hidden + 3] = float_to_bf16(std::numeric_limits<float>::quiet_NaN());
  mixed[4 * hidden] = float_to_bf16(std::numeric_limits<float>::infinity());
  const LatentModel model(Activation::swiglu, hidden, 40, 30);
  const auto backend = create_cpu_backend(2);
  const auto expert = backend->load(model.source());
  const Rows expected = forward(*backend, *expert, clean, all_indices(count));
  const Rows output = forward(*backend, *expert, mixed, all_indices(count));
  for (size_t row = 0; row < count; ++row) {
    const bool same = std::equal(output.begin() + row * hidden, output.begin() + (row + 1) * hidden, expected.begin() + row * hidden);
    EXPECT_EQ(same, row != 1 && row != 4) << "row " << row;
  }
  for (size_t i = 0; i < hidden; ++i) EXPECT_TRUE(std::isnan(bf16_to_float(output[hidden + i]))) << "column " << i;
}

TEST_P(CpuExperts, KeepAnInfiniteLatentRowInfinite) {
  // Inputs and weights positive: the output is +infinity, although padding multiplies zeros.
  LatentModel model(Activation::gelu, 3, 5, 7);
  for (Rows* matrix : {&model.input, &model.own.up, &model.own.down, &model.output}) std::fill(matrix->begin(), matrix->end(), float_to_bf16(0.5f));
  const auto backend = create_cpu_backend(1);
  const auto expert = backend->load(model.source());
  const Rows row = {float_to_bf16(std::numeric_limits<float>::infinity()), float_to_bf16(1.0f), float_to_bf16(2.0f)};
  for (const uint16_t value : forward(*backend, *expert, row, {0})) EXPECT_EQ(bf16_to_float(value), std::numeric_limits<float>::infinity());
}

TEST(CpuLatentExperts, ShareTheirMapsInMemory) {
  const LatentModel model(Activation::gelu, 96, 40, 64);
  size_t rows_read = 0;
  ExpertSource source = model.source();
  const auto read = source.latent->input.read;
  source.latent->input.read = [&](size_t first, size_t count, uint16_t* out) {
    rows_read += count;
    read(first, count, out);
  };
  const auto backend = create_cpu_backend(1);
  {
    const auto first = backend->load(source);
    const auto second = backend->load(source);
    EXPECT_EQ(rows_read, 40u);
    EXPECT_EQ(first->bytes(), create_cpu_backend(1)->load(model.own.source())->bytes()) << "what is shared is counted";
    ExpertSource other = source;
    other.latent->key = "another layer";
    const auto third = backend->load(other);
    EXPECT_EQ(rows_read, 80u);
  }
  const auto again = backend->load(source);
  EXPECT_EQ(rows_read, 120u) << "maps that no expert had were kept";
}

TEST(CpuLatentExperts, RefuseMapsThatDoNotFit) {
  const LatentModel model(Activation::gelu, 8, 4, 16);
  const auto backend = create_cpu_backend(1);
  const auto refused = [&](const std::function<void(LatentSource&)>& spoil, const std::string& field) {
    ExpertSource source = model.source();
    spoil(*source.latent);
    try {
      backend->load(source);
      ADD_FAILURE() << field << " is loaded";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(field), std::string::npos) << error.what();
    }
  };
  refused([](LatentSource& latent) { latent.input.rows = 5; }, "latent.input.rows");
  refused([](LatentSource& latent) { latent.input.columns = 0; }, "latent.input.columns");
  refused([](LatentSource& latent) { latent.output.rows = 9; }, "latent.output.rows");
  refused([](LatentSource& latent) { latent.output.columns = 8; }, "latent.output.columns");
}

}  // namespace
}  // namespace switchyard
