#include "experts/cpu/cpu_expert.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

/** Where a vector's or a matrix's rows are put: the i-th comes from row order[i]; empty: from row i. */
using RowOrigins = std::span<const uint32_t>;

/** Puts a bias at columns [first, first + width) of each panel of so many columns. */
void place_bias(const std::function<std::vector<float>()>& read, RowOrigins order, size_t first, size_t width, size_t columns, std::vector<float>& bias) {
  if (!read) return;
  const std::vector<float> values = read();
  for (size_t i = 0; i < values.size(); ++i) bias[i / width * columns + first + i % width] = values[order.empty() ? i : order[i]];
}

/** `read`, which writes `length` elements a row, of rows in that order. */
template <typename Element, typename Read>
auto one_by_one(const Read& read, RowOrigins order, size_t length) {
  return [=](size_t first, size_t count, Element* out) {
    for (size_t i = 0; i < count; ++i) read(order[first + i], 1, out + i * length);
  };
}

/** The matrix with its rows in that order, which must outlive it. */
MatrixSource with_rows(const MatrixSource& source, RowOrigins order) {
  if (order.empty()) return source;
  MatrixSource other = source;
  other.read = one_by_one<uint16_t>(source.read, order, source.columns);
  if (!source.packed) return other;
  const PackedSource& packed = *source.packed;
  const size_t scales = divide_up(source.columns, packed.columns_per_scale);
  other.packed->scales = one_by_one<float>(packed.scales, order, scales);
  if (packed.zeros) other.packed->zeros = one_by_one<int8_t>(packed.zeros, order, scales);
  other.packed->codes = [codes = packed.codes, order, columns = source.columns](size_t first, size_t count, uint8_t* out) {
    bool whole = true;
    for (size_t i = 0; i < count; ++i) whole = codes(order[first + i], 1, out + i * columns) && whole;
    return whole;
  };
  return other;
}

/** Whole groups of the intermediate, though a panel may give half of one. */
size_t first_panels(const ExpertSource& source, size_t panel_outputs) {
  if (source.activation == Activation::identity) return 0;
  const size_t whole = std::max(panel_outputs, group_depth);
  return divide_up(source.up.rows, whole) * (whole / panel_outputs);
}

std::optional<PackedForm> first_form(const ExpertSource& source, bool packed) {
  if (!packed) return std::nullopt;
  std::optional<PackedForm> form = source.gate ? packed_form_of(std::array{&*source.gate, &source.up}) : packed_form_of(std::array{&source.up});
  // Rows that a latent map gives have their columns as they are.
  if (form && source.latent && !form->column_order.empty()) return std::nullopt;
  return form;
}

std::optional<PackedForm> second_form(const ExpertSource& source, bool packed) {
  return packed ? packed_form_of(std::array{&source.down}) : std::nullopt;
}

}  // namespace

CpuExpert::CpuExpert(const PanelOrder& order, const ExpertSource& source, std::shared_ptr<const Latent> latent, bool packed)
    : activation_(source.activation),
      glu_(source.glu),
      latent_(std::move(latent)),
      width_(source.up.columns),
      hidden_(latent_ ? latent_->hidden : width_),
      ffn_(source.up.rows),
      panel_outputs_(is_gated(source.activation) ? order.columns / 2 : order.columns),
      first_(order, first_panels(source, panel_outputs_), latent_ ? groups_of_result(order, width_) : divide_up(width_, group_depth), first_form(source, packed)),
      second_(order, activation_ == Activation::identity ? 0 : divide_up(width_, order.columns), first_.panels() * panel_outputs_ / group_depth,
              second_form(source, packed)),
      memory_(PackedWeights::allocate({&first_, &second_})),
      first_bias_(first_.panels() * order.columns, -0.0f),
      second_bias_(second_.panels() * order.columns, -0.0f) {}

bool CpuExpert::fill(const ExpertSource& source) {
  bool whole = true;
  const size_t columns = first_.order().columns;
  const size_t up = columns - panel_outputs_;
  // The second product reads the intermediate in its own order.
  const RowOrigins order = second_.column_order();
  const std::optional<MatrixSource> gate_rows = source.gate ? std::optional(with_rows(*source.gate, order)) : std::nullopt;
  const MatrixSource up_rows = with_rows(source.up, order);
  for (size_t panel = 0; panel < first_.panels(); ++panel) {
    const size_t row = panel * panel_outputs_;
    if (gate_rows) whole = first_.fill(panel, 0, *gate_rows, row, panel_outputs_) && whole;
    whole = first_.fill(panel, up, up_rows, row, panel_outputs_) && whole;
  }
  for (size_t panel = 0; panel < second_.panels(); ++panel) {
    whole = second_.fill(panel, 0, source.down, panel * columns, columns) && whole;
  }
  place_bias(source.gate_bias, order, 0, panel_outputs_, columns, first_bias_);
  place_bias(source.up_bias, order, up, panel_outputs_, columns, first_bias_);
  place_bias(source.down_bias, {}, 0, columns, columns, second_bias_);
  return whole;
}

std::vector<Stage> CpuExpert::stages() const {
  std::vector<Stage> stages;
  if (latent_) stages.push_back({latent_->input.weights(), latent_->input.bias(), Activation::identity, width_});
  stages.push_back({first_, first_bias_.data(), activation_, ffn_});
  stages.push_back({second_, second_bias_.data(), Activation::identity, width_});
  if (latent_) stages.push_back({latent_->output.weights(), latent_->output.bias(), Activation::identity, hidden_});
  return stages;
}

std::unique_ptr<CpuExpert> load_expert(const PanelOrder& order, const ExpertSource& source, Latents& latents) {
  check_source(source);
  const std::shared_ptr<const Latent> latent = source.latent ? latents.load(order, *source.latent) : nullptr;
  for (const bool packed : {true, false}) {
    std::unique_ptr<CpuExpert> expert(new CpuExpert(order, source, latent, packed));
    if (expert->fill(source)) return expert;
  }
  throw Error(Code::internal, "weights in BF16 hold any value");
}

}  // namespace switchyard::cpu
