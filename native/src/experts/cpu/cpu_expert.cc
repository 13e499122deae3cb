#include "experts/cpu/cpu_expert.h"

namespace switchyard::cpu {
namespace {

size_t outputs_of_panel(const ExpertSource& source) {
  check_source(source);
  return source.activation == Activation::swiglu ? panel_columns / 2 : panel_columns;
}

}  // namespace

CpuExpert::CpuExpert(const ExpertSource& source)
    : activation_(source.activation),
      hidden_(source.up.columns),
      ffn_(source.up.rows),
      panel_outputs_(outputs_of_panel(source)),
      first_(divide_up(ffn_, panel_outputs_), divide_up(hidden_, group_depth)),
      // The first product writes whole panels, so the second reads as many groups.
      second_(divide_up(hidden_, panel_columns), first_.panels() * panel_outputs_ / group_depth) {
  for (size_t panel = 0; panel < first_.panels(); ++panel) {
    const size_t row = panel * panel_outputs_;
    if (activation_ == Activation::swiglu) {
      first_.fill(panel, 0, *source.gate, row, panel_outputs_);
      first_.fill(panel, panel_outputs_, source.up, row, panel_outputs_);
    } else {
      first_.fill(panel, 0, source.up, row, panel_outputs_);
    }
  }
  for (size_t panel = 0; panel < second_.panels(); ++panel) {
    second_.fill(panel, 0, source.down, panel * panel_columns, panel_columns);
  }
}

}  // namespace switchyard::cpu
