#include "experts/cpu/latent.h"

#include <algorithm>
#include <array>

#include "runtime/error.h"

namespace switchyard::cpu {

Linear::Linear(const MatrixSource& source, std::optional<PackedForm> form)
    : weights_(divide_up(source.rows, panel_columns), divide_up(source.columns, group_depth), form),
      // Negative zero changes nothing.
      bias_(weights_.panels() * panel_columns, -0.0f) {}

Linear Linear::load(const MatrixSource& source, const std::function<std::vector<float>()>& bias) {
  for (const bool packed : {true, false}) {
    Linear linear(source, packed ? packed_form_of(std::array{&source}) : std::nullopt);
    bool whole = true;
    for (size_t panel = 0; panel < linear.weights_.panels(); ++panel) {
      whole = linear.weights_.fill(panel, 0, source, panel * panel_columns, panel_columns) && whole;
    }
    if (!whole) continue;
    if (bias) std::ranges::copy(bias(), linear.bias_.begin());
    return linear;
  }
  throw Error(Code::internal, "weights in BF16 hold any value");
}

std::shared_ptr<const Latent> Latents::load(const LatentSource& source) {
  // Others wait, for most of them want the same.
  const std::lock_guard lock(mutex_);
  std::erase_if(known_, [](const auto& entry) { return entry.second.expired(); });
  std::weak_ptr<const Latent>& known = known_[source.key];
  if (auto found = known.lock()) return found;
  auto loaded = std::make_shared<const Latent>(
      Latent{source.input.columns, Linear::load(source.input, source.input_bias), Linear::load(source.output, {})});
  known = loaded;
  return loaded;
}

}  // namespace switchyard::cpu
