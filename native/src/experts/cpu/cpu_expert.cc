#include "experts/cpu/cpu_expert.h"

#include <array>
#include <utility>

#include "runtime/error.h"

namespace switchyard::cpu {
namespace {

size_t outputs_of_panel(const ExpertSource& source) {
  return is_gated(source.activation) ? panel_columns / 2 : panel_columns;
}

/** Puts a bias at columns [first, first + width) of each panel. */
void place_bias(const std::function<std::vector<float>()>& read, size_t first, size_t width, std::vector<float>& bias) {
  if (!read) return;
  const std::vector<float> values = read();
  for (size_t i = 0; i < values.size(); ++i) bias[i / width * panel_columns + first + i % width] = values[i];
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

CpuExpert::CpuExpert(const ExpertSource& source, std::shared_ptr<const Latent> latent, bool packed)
    : activation_(source.activation),
      glu_(source.glu),
      latent_(std::move(latent)),
      width_(source.up.columns),
      hidden_(latent_ ? latent_->hidden : width_),
      ffn_(source.up.rows),
      panel_outputs_(outputs_of_panel(source)),
      first_(activation_ == Activation::identity ? 0 : divide_up(ffn_, panel_outputs_), divide_up(width_, group_depth), first_form(source, packed)),
      // The first product writes whole panels, so the second reads as many groups.
      second_(activation_ == Activation::identity ? 0 : divide_up(width_, panel_columns), first_.panels() * panel_outputs_ / group_depth, second_form(source, packed)),
      first_bias_(first_.panels() * panel_columns, -0.0f),
      second_bias_(second_.panels() * panel_columns, -0.0f) {}

bool CpuExpert::fill(const ExpertSource& source) {
  bool whole = true;
  for (size_t panel = 0; panel < first_.panels(); ++panel) {
    const size_t row = panel * panel_outputs_;
    const size_t column = panel_columns - panel_outputs_;
    if (source.gate) whole = first_.fill(panel, 0, *source.gate, row, panel_outputs_) && whole;
    whole = first_.fill(panel, source.gate ? column : 0, source.up, row, panel_outputs_) && whole;
  }
  for (size_t panel = 0; panel < second_.panels(); ++panel) {
    whole = second_.fill(panel, 0, source.down, panel * panel_columns, panel_columns) && whole;
  }
  place_bias(source.gate_bias, 0, panel_outputs_, first_bias_);
  place_bias(source.up_bias, panel_columns - panel_outputs_, panel_outputs_, first_bias_);
  place_bias(source.down_bias, 0, panel_columns, second_bias_);
  return whole;
}

std::unique_ptr<CpuExpert> load_expert(const ExpertSource& source, Latents& latents) {
  check_source(source);
  const std::shared_ptr<const Latent> latent = source.latent ? latents.load(*source.latent) : nullptr;
  for (const bool packed : {true, false}) {
    std::unique_ptr<CpuExpert> expert(new CpuExpert(source, latent, packed));
    if (expert->fill(source)) return expert;
  }
  throw Error(Code::internal, "weights in BF16 hold any value");
}

}  // namespace switchyard::cpu
