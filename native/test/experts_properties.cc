// Properties of expert FFNs on the CPU over random sizes, rows and values, against float64. Every trial prints its seed.
#include <cmath>
#include <limits>

#include "experts_support.h"

namespace switchyard {
namespace {

using namespace test;

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuExperts, testing::ValuesIn(names_of_all()), name_of_isa);

/** 1 to `most`: half of them multiples of 32, as real models have them, the others of any kind. */
size_t random_size(size_t most, std::mt19937& random) {
  const size_t size = 1 + random() % most;
  return random() % 2 == 0 ? size : (size + 31) / 32 * 32;
}

/** BF16 bits below the smallest normal number: subnormals of both signs and zeros. */
uint16_t random_subnormal(std::mt19937& random) { return static_cast<uint16_t>((random() % 2) << 15 | random() % 0x80); }

/** Outputs are NaN, +infinity or -infinity exactly where float64 says so, and otherwise close to it as a vector. */
void expect_like_reference(const uint16_t* got, const std::vector<double>& expected, double allowed) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double value = bf16_to_float(got[i]);
    if (std::isnan(expected[i])) {
      ASSERT_TRUE(std::isnan(value)) << "column " << i << " is " << value << ", expected NaN";
    } else if (std::isinf(expected[i])) {
      ASSERT_EQ(value, expected[i]) << "column " << i;
    } else {
      difference += std::pow(value - expected[i], 2);
      norm += expected[i] * expected[i];
    }
  }
  // Beside numbers this small, everything subnormal may count as zero.
  constexpr double negligible = 1e-60;
  ASSERT_LE(std::sqrt(difference / (norm + negligible)), allowed);
}

struct Trial {
  Activation activation;
  size_t hidden, ffn, rows;

  explicit Trial(std::mt19937& random)
      : activation(random() % 2 == 0 ? Activation::swiglu : Activation::gelu),
        hidden(random_size(300, random)),
        ffn(random_size(300, random)),
        rows(1 + random() % 300) {}

  /** The intermediate and the output are rounded to BF16, by 2^-8 at most each; sums of few products may cancel. */
  double allowed() const { return hidden < 32 || ffn < 32 ? 0x1p-6 : 0x1p-7; }
};

std::ostream& operator<<(std::ostream& out, const Trial& trial) {
  return out << (trial.activation == Activation::swiglu ? "swiglu " : "gelu ") << trial.hidden << "x" << trial.ffn << ", "
             << trial.rows << " rows";
}

/** Computes `rows` of a trial on up to three threads and compares `compared` of them, spread over all, with float64. */
void expect_rows_like_reference(const Trial& trial, const Model& model, const Rows& rows, size_t compared, unsigned seed) {
  const auto backend = create_cpu_backend(1 + static_cast<int>(seed % 3));
  const auto expert = backend->load(model.source());
  const Rows output = forward(*backend, *expert, rows, all_indices(trial.rows));
  const size_t step = std::max<size_t>(1, trial.rows / compared);
  for (size_t row = seed % step; row < trial.rows; row += step) {
    SCOPED_TRACE(testing::Message() << "row " << row);
    expect_like_reference(output.data() + row * trial.hidden, model.reference(rows.data() + row * trial.hidden), trial.allowed());
    if (testing::Test::HasFatalFailure()) return;
  }
}

constexpr unsigned trials = 60;

/** Calls body(trial, random, seed) for every trial; stops at the first that fails. */
template <typename Body>
void for_trials(const Body& body) {
  for (unsigned seed = 0; seed < trials; ++seed) {
    std::mt19937 random(seed);
    const Trial trial(random);
    SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << trial);
    body(trial, random, seed);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(CpuExperts, RaggedRowsOfAnySizeMatchFloat64) {
  for_trials([](const Trial& trial, std::mt19937& random, unsigned seed) {
    const Model model(trial.activation, trial.hidden, trial.ffn, seed);
    expect_rows_like_reference(trial, model, random_values(trial.rows * trial.hidden, 2.0f, random), 8, seed);
  });
}

TEST_P(CpuExperts, SubnormalsAmongOrdinaryValuesMatchFloat64) {
  for_trials([](const Trial& trial, std::mt19937& random, unsigned seed) {
    Model model(trial.activation, trial.hidden, trial.ffn, seed);
    Rows rows = random_values(trial.rows * trial.hidden, 2.0f, random);
    for (Rows* values : {&rows, &model.gate, &model.up, &model.down}) {
      for (uint16_t& value : *values) {
        if (random() % 4 == 0) value = random_subnormal(random);
      }
    }
    // And some rows of nothing else.
    for (size_t row = 0; row < trial.rows; row += 5) {
      for (size_t k = 0; k < trial.hidden; ++k) rows[row * trial.hidden + k] = random_subnormal(random);
    }
    expect_rows_like_reference(trial, model, rows, 8, seed);
  });
}

TEST_P(CpuExperts, NanAndInfinityComeOutWhereFloat64HasThem) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const float special[] = {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity, 0.0f};
  for_trials([&](const Trial& trial, std::mt19937& random, unsigned seed) {
    Model model(trial.activation, trial.hidden, trial.ffn, seed);
    // Weights of one sign let infinities through; of both signs they meet and become NaN.
    if (seed % 2 == 0) {
      for (Rows* matrix : {&model.gate, &model.up, &model.down}) {
        for (uint16_t& weight : *matrix) weight &= 0x7fff;
      }
    }
    Rows rows = random_values(trial.rows * trial.hidden, 2.0f, random);
    for (size_t row = 0; row < trial.rows; ++row) {
      if (random() % 2 == 0) rows[row * trial.hidden + random() % trial.hidden] = float_to_bf16(special[random() % 4]);
    }
    expect_rows_like_reference(trial, model, rows, 20, seed);
  });
}

TEST_P(CpuExperts, ARowsBitsDependOnNeitherItsPlaceNorItsCompanyNorThreads) {
  for_trials([](const Trial& trial, std::mt19937& random, unsigned seed) {
    const Model model(trial.activation, trial.hidden, trial.ffn, seed);
    const Rows rows = random_values(trial.rows * trial.hidden, 2.0f, random);
    std::vector<uint32_t> order(1 + random() % 300);
    for (uint32_t& index : order) index = static_cast<uint32_t>(random() % trial.rows);
    const auto first = create_cpu_backend(1);
    const auto second = create_cpu_backend(2 + static_cast<int>(seed % 3));
    const Rows in_order = forward(*first, *first->load(model.source()), rows, all_indices(trial.rows));
    const Rows mixed = forward(*second, *second->load(model.source()), rows, order);
    for (size_t i = 0; i < order.size(); ++i) {
      ASSERT_TRUE(std::equal(mixed.begin() + i * trial.hidden, mixed.begin() + (i + 1) * trial.hidden,
                             in_order.begin() + order[i] * trial.hidden))
          << "row " << order[i] << " at place " << i << " of " << order.size();
    }
  });
}

}  // namespace
}  // namespace switchyard
