#include "experts/cpu/latent.h"

#include <algorithm>
#include <array>

#include "runtime/error.h"

namespace switchyard::cpu {

Linear::Linear(const PanelOrder& order, const MatrixSource& source, size_t groups, std::optional<PackedForm> form)
    : weights_(order, divide_up(source.rows, order.columns), groups, form),
      memory_(PackedWeights::allocate({&weights_})),
      // Negative zero changes nothing.
      bias_(weights_.panels() * order.columns, -0.0f) {}

Linear Linear::load(const PanelOrder& order, const MatrixSource& source, size_t groups, const std::function<std::vector<float>()>& bias) {
  for (const bool packed : {true, false}) {
    std::optional<PackedForm> form;
    if (packed) form = packed_form_of(std::array{&source});
    // What other stages give has its columns as they are.
    if (form && !form->column_order.empty()) continue;
    Linear linear(order, source, groups, form);
    bool whole = true;
    for (size_t panel = 0; panel < linear.weights_.panels(); ++panel) {
      whole = linear.weights_.fill(panel, 0, source, panel * order.columns, order.columns) && whole;
    }
    if (!whole) continue;
    if (bias) std::ranges::copy(bias(), linear.bias_.begin());
    return linear;
  }
  throw Error(Code::internal, "weights in BF16 hold any value");
}

std::shared_ptr<const Latent> Latents::load(const PanelOrder& order, const LatentSource& source) {
  // Others wait, for most of them want the same.
  const std::lock_guard lock(mutex_);
  std::erase_if(known_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<const Latent>& known = known_[source.key];
  if (auto found = known.lock()) return found;
  auto loaded = std::make_shared<const Latent>(
      Latent{source.input.columns, Linear::load(order, source.input, divide_up(source.input.columns, group_depth), source.input_bias),
             Linear::load(order, source.output, groups_of_result(order, source.output.columns), {})});
  known = loaded;
  return loaded;
}

}  // namespace switchyard::cpu
