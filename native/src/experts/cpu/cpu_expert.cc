#include "experts/cpu/cpu_expert.h"

#include <algorithm>
#include <array>
#include <utility>

#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

/** Puts a bias at columns [first, first + width) of each panel of so many columns. */
void place_bias(const std::function<std::vector<float>()>& read, size_t first, size_t width, size_t columns, std::vector<float>& bias) {
  if (!read) return;
  const std::vector<float> values = read();
  for (size_t i = 0; i < values.size(); ++i) bias[i / width * columns + first + i % width] = values[i];
}

/** Whole groups of the intermediate, though a panel may give half of one. */
size_t first_panels(const ExpertSource& source, size_t panel_outputs) {
  if (source.activation == Activation::identity) return 0;
  const size_t whole = std::max(panel_outputs, group_depth);
  return divide_up(source.up.rows, whole) * (whole / panel_outputs);
}

std::optional<PackedForm> first_form(const ExpertSource& source, bool packed) {
  if (!packed) return std::nullopt;
  if (!source.gate) return packed_form_of(std::array{&source.up});
  return packed_form_of(std::array{&*source.gate, &source.up});
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
  for (size_t panel = 0; panel < first_.panels(); ++panel) {
    const size_t row = panel * panel_outputs_;
    if (source.gate) whole = first_.fill(panel, 0, *source.gate, row, panel_outputs_) && whole;
    whole = first_.fill(panel, up, source.up, row, panel_outputs_) && whole;
  }
  for (size_t panel = 0; panel < second_.panels(); ++panel) {
    whole = second_.fill(panel, 0, source.down, panel * columns, columns) && whole;
  }
  place_bias(source.gate_bias, 0, panel_outputs_, columns, first_bias_);
  place_bias(source.up_bias, up, panel_outputs_, columns, first_bias_);
  place_bias(source.down_bias, 0, columns, columns, second_bias_);
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
