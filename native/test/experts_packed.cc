#include <immintrin.h>

#include <string_view>
#include <utility>

#include "experts_support.h"
#include "model/codes.h"

// Experts whose weights stay codes in memory, against float64 over codes times scales.

namespace switchyard {
namespace {

using namespace test;

INSTANTIATE_TEST_SUITE_P(InstructionSets, CpuExperts, testing::ValuesIn(names_of_all()), name_of_isa);

struct Form {
  std::string_view name;
  CodeType type;
  /** 0: one scale a row. */
  size_t columns_per_scale;
  /** Scales are BF16. */
  bool narrow;
  /** Scales are powers of two. */
  bool powers;
  bool has_zeros = false;
  /** The columns of a scale are not side by side. */
  bool is_ordered = false;
};

constexpr Form forms[] = {
    {"FP8 in blocks", CodeType::f8_e4m3, 128, false, false}, {"FP8 by row", CodeType::f8_e4m3, 0, true, false},
    {"FP8 in threes", CodeType::f8_e4m3, 96, false, false},  {"FP8 in sixes", CodeType::f8_e4m3, 192, true, false},
    {"MXFP4", CodeType::f4_e2m1, 32, true, true},            {"NVFP4-like", CodeType::f4_e2m1, 64, false, false},
    {"INT4 in groups", CodeType::u4, 32, true, false},       {"INT4 by row", CodeType::u4, 0, false, false},
    {"INT8 in groups", CodeType::i8, 128, true, false},      {"INT8 by row", CodeType::i8, 0, false, false},
    {"INT4 in groups with zero points", CodeType::u4, 32, true, false, true},
    {"INT8 in threes with zero points", CodeType::i8, 96, false, false, true},
    {"INT4 in an order of columns, with zero points", CodeType::u4, 32, true, false, true, true},
};

double value_of(CodeType type, uint8_t code) {
  switch (type) {
    case CodeType::f8_e4m3: return codes::e4m3[code];
    case CodeType::f4_e2m1: return codes::e2m1[code];
    case CodeType::i8: return static_cast<int8_t>(code);
    case CodeType::u4: return code - 8.0;
  }
  return 0;
}

/** A matrix of random codes, all of them, and its values. */
struct Coded {
  Form form;
  size_t rows, columns, scale_columns;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  /** As many, if the form has them. */
  std::vector<int8_t> zeros;
  /** Which column each of those is that scales count, and the reverse. */
  std::vector<uint32_t> order, places;

  Coded(const Form& kind, size_t row_count, size_t column_count, std::mt19937& random) : form(kind), rows(row_count), columns(column_count) {
    set_order(columns);
    scale_columns = form.columns_per_scale == 0 ? 1 : (columns + form.columns_per_scale - 1) / form.columns_per_scale;
    codes.resize(rows * columns);
    const unsigned all = bits_of(form.type) == 8 ? 256 : 16;
    for (uint8_t& code : codes) {
      do code = static_cast<uint8_t>(random() % all);
      while (form.type == CodeType::f8_e4m3 && (code & 0x7f) == 0x7f);
    }
    if (form.has_zeros) zeros.resize(rows * scale_columns);
    for (int8_t& zero : zeros) zero = static_cast<int8_t>(static_cast<int>(random() % all) - static_cast<int>(all) / 2);
    // Products about as large as what goes into them, whatever the codes.
    double squares = 0;
    for (size_t row = 0; row < rows; ++row) {
      for (size_t column = 0; column < columns; ++column) squares += unscaled(row, column) * unscaled(row, column);
    }
    const float usual = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(rows)));
    std::uniform_real_distribution<float> factor(0.5f, 2.0f);
    scales.resize(rows * scale_columns);
    for (float& scale : scales) {
      scale = usual * factor(random);
      if (form.powers) scale = std::exp2(std::round(std::log2(scale)));
      if (form.narrow) scale = bf16_to_float(float_to_bf16(scale));
    }
  }

  void set_order(unsigned seed) {
    order.resize(columns);
    places.resize(columns);
    std::iota(order.begin(), order.end(), 0);
    std::mt19937 own(seed);
    if (form.is_ordered) std::ranges::shuffle(order, own);
    for (size_t place = 0; place < columns; ++place) places[order[place]] = static_cast<uint32_t>(place);
  }

  /** Where the scale of an element is. */
  size_t its_scale(size_t row, size_t column) const { return row * scale_columns + (form.columns_per_scale == 0 ? 0 : places[column] / form.columns_per_scale); }

  double unscaled(size_t row, size_t column) const {
    return value_of(form.type, codes[row * columns + column]) - (zeros.empty() ? 0 : zeros[its_scale(row, column)]);
  }

  double value(size_t row, size_t column) const { return unscaled(row, column) * scales[its_scale(row, column)]; }

  double dot(size_t row, const std::vector<double>& x) const {
    double sum = 0;
    for (size_t column = 0; column < columns; ++column) sum += x[column] * value(row, column);
    return sum;
  }

  MatrixSource source() const {
    return {.rows = rows,
            .columns = columns,
            .read = [](size_t, size_t, uint16_t*) { FAIL() << "codes are read as BF16"; },
            .packed = PackedSource{.type = form.type,
                                   .columns_per_scale = form.columns_per_scale == 0 ? columns : form.columns_per_scale,
                                   .order = read_order(),
                                   .codes =
                                       [this](size_t first, size_t count, uint8_t* out) {
                                         for (size_t i = 0; i < count * columns; ++i) out[i] = codes[(first + i / columns) * columns + order[i % columns]];
                                         return true;
                                       },
                                   .scales =
                                       [this](size_t first, size_t count, float* out) {
                                         std::copy_n(scales.begin() + first * scale_columns, count * scale_columns, out);
                                       },
                                   .zeros = read_zeros()}};
  }

  std::function<std::vector<uint32_t>()> read_order() const {
    if (!form.is_ordered) return nullptr;
    return [this] { return order; };
  }

  std::function<void(size_t, size_t, int8_t*)> read_zeros() const {
    if (zeros.empty()) return nullptr;
    return [this](size_t first, size_t count, int8_t* out) { std::copy_n(zeros.begin() + first * scale_columns, count * scale_columns, out); };
  }
};

struct CodedModel {
  Coded gate, up, down;

  CodedModel(const Form& form, size_t hidden, size_t ffn, std::mt19937& random)
      : gate(form, ffn, hidden, random), up(form, ffn, hidden, random), down(form, hidden, ffn, random) {}

  ExpertSource source() const {
    return {.activation = Activation::swiglu, .gate = gate.source(), .up = up.source(), .down = down.source()};
  }

  /** `bias`: of every element of gate and up. */
  std::vector<double> reference(const uint16_t* row, double bias = 0) const {
    std::vector<double> x(up.columns), h(up.rows), y(down.rows);
    for (size_t i = 0; i < x.size(); ++i) x[i] = bf16_to_float(row[i]);
    for (size_t i = 0; i < h.size(); ++i) {
      const double g = gate.dot(i, x) + bias;
      h[i] = g / (1 + std::exp(-g)) * (up.dot(i, x) + bias);
    }
    for (size_t i = 0; i < y.size(); ++i) y[i] = down.dot(i, h);
    return y;
  }
};

/** Calls body(form, model, rows, random) for every form at several sizes, whole panels, steps and groups among them and not. */
template <typename Body>
void for_forms(const Body& body) {
  constexpr size_t sizes[][2] = {{256, 128}, {512, 320}, {160, 96}, {330, 75}, {33, 1}};
  for (const Form& form : forms) {
    unsigned seed = 0;
    for (const auto& [hidden, ffn] : sizes) {
      SCOPED_TRACE(testing::Message() << form.name << ", hidden " << hidden << ", ffn " << ffn);
      std::mt19937 random(++seed);
      const CodedModel model(form, hidden, ffn, random);
      body(model, random_values(47 * hidden, 2.0f, random), random);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(CpuExperts, MatchFloat64OverCodesAndScales) {
  for_forms([](const CodedModel& model, const Rows& rows, std::mt19937&) {
    const auto backend = create_cpu_backend(1);
    const auto expert = backend->load(model.source());
    const size_t hidden = model.up.columns;
    for (const size_t count : {1, 2, 3, 47}) {
      const Rows output = forward(*backend, *expert, rows, all_indices(count));
      for (size_t row = 0; row < count; row += 3) {
        ASSERT_LT(relative_error(output.data() + row * hidden, model.reference(rows.data() + row * hidden)), 8e-3) << "row " << row << " of " << count;
      }
    }
  });
}

TEST_P(CpuExperts, GiveARowTheSameBitsFromCodesWhateverIsBesideIt) {
  for_forms([](const CodedModel& model, const Rows& rows, std::mt19937& random) {
    expect_the_bits_of_rows_alone(model.source(), rows, {1, 2, 3, 4, 5, 6, 8, 11, 12, 14, 16, 17, 40, 70}, random);
  });
}

TEST_P(CpuExperts, GiveARowTheSameBitsFromCodesHoweverLargeItsElements) {
  for_forms([](const CodedModel& model, Rows rows, std::mt19937& random) {
    const size_t hidden = model.up.columns;
    // Not so large that what is between the products leaves the floats.
    for (size_t row = 0; row < rows.size() / hidden; row += 2) rows[row * hidden + row % hidden] = float_to_bf16(std::exp2(static_cast<float>(row % 30)));
    expect_the_bits_of_rows_alone(model.source(), rows, {1, 2, 3, 17}, random);
    const auto backend = create_cpu_backend(1);
    const Rows output = forward(*backend, *backend->load(model.source()), rows, all_indices(2));
    ASSERT_LT(relative_error(output.data(), model.reference(rows.data())), 8e-3);
  });
}

TEST_P(CpuExperts, GiveARowTheSameBitsFromCodesWhereStepsAndPanelsEndApart) {
  std::mt19937 random(1);
  for (const CodeType type : {CodeType::f8_e4m3, CodeType::i8, CodeType::f4_e2m1}) {
    const CodedModel model({"in threes", type, 96, false, false}, 64, 2048, random);
    ExpertSource source = model.source();
    source.activation = Activation::relu2;
    source.gate.reset();
    expect_the_bits_of_rows_alone(source, random_values(40 * 64, 2.0f, random), {6, 17, 40}, random);
  }
}

TEST_P(CpuExperts, CountSubnormalCodesThoughTheirMakerFlushesThem) {
  std::mt19937 random(1);
  for (const Form& form : forms) {
    const CodedModel model(form, 256, 128, random);
    const Rows rows = random_values(6 * 256, 2.0f, random);
    const auto results = [&] {
      const auto backend = create_cpu_backend(2);
      const auto expert = backend->load(model.source());
      return std::pair(forward(*backend, *expert, rows, all_indices(6)), forward(*backend, *expert, rows, all_indices(1)));
    };
    const auto expected = results();
    constexpr unsigned flushing = 0x8040;
    const unsigned usual = _mm_getcsr();
    _mm_setcsr(usual | flushing);
    const auto found = results();
    _mm_setcsr(usual);
    ASSERT_EQ(found, expected) << form.name;
  }
}

TEST_P(CpuExperts, OfMatricesInOrdersOfTheirOwnBecomeBf16) {
  std::mt19937 random(1);
  const Form ordered = {"in an order", CodeType::u4, 32, true, false, false, true};
  CodedModel model(ordered, 256, 128, random);
  model.gate.set_order(7);
  ExpertSource source = model.source();
  const auto as_bf16 = [](const Coded& matrix) {
    return [&matrix](size_t first, size_t count, uint16_t* out) {
      for (size_t i = 0; i < count * matrix.columns; ++i) out[i] = float_to_bf16(static_cast<float>(matrix.value(first + i / matrix.columns, i % matrix.columns)));
    };
  };
  source.gate->read = as_bf16(model.gate);
  source.up.read = as_bf16(model.up);
  source.gate_bias = source.up_bias = [] { return std::vector<float>(128, 0.5f); };
  const auto backend = create_cpu_backend(1);
  const auto expert = backend->load(source);
  const Rows rows = random_values(3 * 256, 1.0f, random);
  const Rows output = forward(*backend, *expert, rows, all_indices(3));
  for (size_t row = 0; row < 3; ++row) {
    const std::vector<double> expected = model.reference(rows.data() + row * 256, 0.5);
    ASSERT_LT(relative_error(output.data() + row * 256, expected), 8e-3) << row;
  }
}

TEST_P(CpuExperts, KeepCodesInAboutTheMemoryThatTheyTake) {
  std::mt19937 random(1);
  for (const Form& form : forms) {
    const CodedModel model(form, 1024, 512, random);
    const auto expert = create_cpu_backend(1)->load(model.source());
    size_t bytes = 0;
    for (const Coded* matrix : {&model.gate, &model.up, &model.down}) {
      bytes += matrix->codes.size() * bits_of(form.type) / 8 + matrix->scales.size() * (form.narrow ? 2 : 4) + matrix->zeros.size();
    }
    EXPECT_LE(expert->bytes(), bytes * 1.1) << form.name;
  }
}

}  // namespace
}  // namespace switchyard
