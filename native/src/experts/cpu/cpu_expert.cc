#include "experts/cpu/cpu_expert.h"

namespace switchyard::cpu {
namespace {

size_t outputs_of_panel(const ExpertSource& source) {
  check_source(source);
  return is_gated(source.activation) ? panel_columns / 2 : panel_columns;
}

/** Puts a bias at columns [first, first + width) of each panel. */
void place_bias(const std::function<std::vector<float>()>& read, size_t first, size_t width, std::vector<float>& bias) {
  if (!read) return;
  const std::vector<float> values = read();
  for (size_t i = 0; i < values.size(); ++i) bias[i / width * panel_columns + first + i % width] = values[i];
}

}  // namespace

CpuExpert::CpuExpert(const ExpertSource& source)
    : activation_(source.activation),
      glu_(source.glu),
      hidden_(source.up.columns),
      ffn_(source.up.rows),
      panel_outputs_(outputs_of_panel(source)),
      first_(divide_up(ffn_, panel_outputs_), divide_up(hidden_, group_depth)),
      // The first product writes whole panels, so the second reads as many groups.
      second_(divide_up(hidden_, panel_columns), first_.panels() * panel_outputs_ / group_depth),
      first_bias_(first_.panels() * panel_columns, -0.0f),
      second_bias_(second_.panels() * panel_columns, -0.0f) {
  for (size_t panel = 0; panel < first_.panels(); ++panel) {
    const size_t row = panel * panel_outputs_;
    if (is_gated(activation_)) {
      first_.fill(panel, 0, *source.gate, row, panel_outputs_);
      first_.fill(panel, panel_outputs_, source.up, row, panel_outputs_);
    } else {
      first_.fill(panel, 0, source.up, row, panel_outputs_);
    }
  }
  for (size_t panel = 0; panel < second_.panels(); ++panel) {
    second_.fill(panel, 0, source.down, panel * panel_columns, panel_columns);
  }
  place_bias(source.gate_bias, 0, panel_outputs_, first_bias_);
  place_bias(source.up_bias, panel_columns - panel_outputs_, panel_outputs_, first_bias_);
  place_bias(source.down_bias, 0, panel_columns, second_bias_);
}

}  // namespace switchyard::cpu
