#include "kernels/route.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/streaming.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

/** Normalises rows whose routing is given, or only looks at them. Returns how many hold NaN or infinity. */
std::size_t look_at(const RouteTask& task, std::size_t first, std::size_t count) {
  const std::uint16_t* rows = task.rows + first * task.hidden;
  if (task.norm_weight == nullptr) return count_non_finite(rows, count, task.hidden);
  return normalize_rows(rows, count, task.hidden, task.norm_weight, task.epsilon, task.normed + first * task.hidden, task.norm_offset);
}

/** Whether normalised rows should go past the caches, and can. */
bool streams(const RouteTask& task) {
  const std::size_t row_bytes = task.hidden * sizeof(std::uint16_t);
  return (reinterpret_cast<std::uintptr_t>(task.normed) | row_bytes) % line_bytes == 0 &&
         worth_streaming(task.row_count * row_bytes);
}

/** What a thread needs to gate rows of a task, block after block. */
class GatedBlocks {
 public:
  static constexpr std::size_t rows_max = GateSession::rows_at_once;

  explicit GatedBlocks(const RouteTask& task) : task_(task), session_(*task.gate, task.bias) {
    if (task.norm_weight == nullptr) return;
    normalized_.emplace(task.hidden, task.norm_weight, task.epsilon, streams(task), task.norm_offset);
  }

  /** Looks at a block of rows whole. Returns how many hold NaN or infinity. */
  std::size_t look_at(std::size_t first, std::size_t count) {
    const std::uint16_t* const rows = task_.rows + first * task_.hidden;
    if (!normalized_) return count_non_finite(rows, count, task_.hidden);
    return normalized_->begin(rows, count, task_.normed + first * task_.hidden);
  }

  /** Gates that block, and normalises it on the way. */
  void gate(std::size_t first, std::size_t count) {
    PlainRows plain(task_.rows + first * task_.hidden, task_.hidden);
    RowParts& rows = normalized_ ? static_cast<RowParts&>(*normalized_) : plain;
    const std::size_t slot = first * task_.gate->slots();
    factors_.clear();
    if (const auto epsilon = task_.gate->row_epsilon()) {
      factors_ = row_factors(task_.rows + first * task_.hidden, count, task_.hidden, *epsilon);
    }
    const std::uint16_t* const next = task_.rows + (first + count) * task_.hidden;
    if (task_.given) session_.share(rows, count, next, task_.experts + slot, task_.weights + slot);
    else session_.route(rows, count, next, task_.experts + slot, task_.weights + slot,
                        factors_.empty() ? nullptr : factors_.data(),
                        task_.token_ids == nullptr ? nullptr : task_.token_ids + first);
  }

 private:
  const RouteTask& task_;
  GateSession session_;
  std::optional<NormalizedRows> normalized_;
  /** Of the block's rows, for gates that take rows as if they were normalised. */
  std::vector<float> factors_;
};

}  // namespace

RouteFigures route_rows(const RouteTask& task, std::size_t first, std::size_t count) {
  RouteFigures figures;
  const Clock::time_point start = Clock::now();
  if (task.gate == nullptr) {
    figures.non_finite = look_at(task, first, count);
    figures.norm_seconds = seconds_between(start, Clock::now());
    return figures;
  }
  GatedBlocks blocks(task);
  const std::size_t end = first + count;
  for (std::size_t at = first; at < end; at += GatedBlocks::rows_max) {
    const std::size_t rows = std::min(GatedBlocks::rows_max, end - at);
    const Clock::time_point begun = Clock::now();
    figures.non_finite += blocks.look_at(at, rows);
    const Clock::time_point looked = Clock::now();
    figures.norm_seconds += seconds_between(begun, looked);
    blocks.gate(at, rows);
    figures.gate_seconds += seconds_between(looked, Clock::now());
  }
  if (task.norm_weight != nullptr) streaming_done();
  return figures;
}

}  // namespace switchyard
