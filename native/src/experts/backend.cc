#include "experts/backend.h"

#include <functional>
#include <future>
#include <numeric>

#include "runtime/error.h"

namespace switchyard {
namespace {

void check_matrix(const char* name, const MatrixSource& matrix, size_t rows, size_t columns) {
  const std::string field(name);
  if (matrix.rows != rows) throw_invalid(field + ".rows", matrix.rows, std::to_string(rows));
  if (matrix.columns != columns) throw_invalid(field + ".columns", matrix.columns, std::to_string(columns));
  if (!matrix.read) throw_invalid(field + ".read", std::string("empty"), "a function");
}

}  // namespace

void check_source(const ExpertSource& source) {
  constexpr size_t dimension_max = size_t{1} << 20;
  const size_t ffn = source.up.rows;
  const size_t width = source.up.columns;
  if (ffn < 1 || ffn > dimension_max) throw_invalid("up.rows", ffn, "1 to 1048576 (ffn)");
  if (width < 1 || width > dimension_max) throw_invalid("up.columns", width, "1 to 1048576 (hidden)");
  check_matrix("up", source.up, ffn, width);
  check_matrix("down", source.down, width, ffn);
  if (is_gated(source.activation)) {
    if (!source.gate) throw_invalid("gate", std::string("absent"), "a [ffn, hidden] matrix, for swiglu and geglu");
    check_matrix("gate", *source.gate, ffn, width);
  } else if (source.gate) {
    throw_invalid("gate", std::string("given"), "absent, for gelu and relu2");
  }
  if (!source.latent) return;
  const size_t hidden = source.latent->input.columns;
  if (hidden < 1 || hidden > dimension_max) throw_invalid("latent.input.columns", hidden, "1 to 1048576 (hidden)");
  check_matrix("latent.input", source.latent->input, width, hidden);
  check_matrix("latent.output", source.latent->output, hidden, width);
}

void check_inputs(std::span<const ExpertInput> inputs) {
  for (size_t number = 0; number < inputs.size(); ++number) {
    const ExpertInput& input = inputs[number];
    const std::string field = "inputs[" + std::to_string(number) + "]";
    if (input.indices.empty()) continue;
    if (input.rows == nullptr) throw_invalid(field + ".rows", std::string("null"), "memory");
    if (input.output == nullptr) throw_invalid(field + ".output", std::string("null"), "memory");
    if (input.output_row > input.output_row_count ||
        input.indices.size() > input.output_row_count - input.output_row) {
      throw_invalid(field + ".outputRow", input.output_row,
                    "at most " + std::to_string(input.output_row_count) + " output rows less " +
                        std::to_string(input.indices.size()) + " indices");
    }
    for (size_t i = 0; i < input.indices.size(); ++i) {
      if (input.indices[i] >= input.row_count) {
        throw_invalid(field + ".indices[" + std::to_string(i) + "]", input.indices[i],
                      "below " + std::to_string(input.row_count) + " (rows)");
      }
    }
  }
}

size_t ExpertCall::rows() const {
  return std::transform_reduce(inputs.begin(), inputs.end(), size_t{0}, std::plus(), [](const ExpertInput& input) { return input.indices.size(); });
}

double ExpertBackend::forward(const Expert& expert, std::span<const ExpertInput> inputs) {
  // Shared, because the thread that keeps the promise may still be in it when this one goes on.
  const auto promise = std::make_shared<std::promise<double>>();
  std::future<double> seconds = promise->get_future();
  submit(expert, {inputs.begin(), inputs.end()}, [promise](const ComputeTime& time, std::exception_ptr error) {
    if (error) promise->set_exception(error);
    else promise->set_value(time.seconds);
  });
  return seconds.get();
}

}  // namespace switchyard
