#include "kernels/route.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "kernels/non_finite.h"
#include "kernels/norm.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double>(end - start).count();
}

/** Normalises rows, or only looks at them. Returns how many hold NaN or infinity. */
std::size_t prepare(const RouteTask& task, std::size_t first, std::size_t count) {
  const std::uint16_t* rows = task.rows + first * task.hidden;
  if (task.norm_weight == nullptr) return count_non_finite(rows, count, task.hidden);
  return normalize_rows(rows, count, task.hidden, task.norm_weight, task.epsilon, task.normed + first * task.hidden);
}

}  // namespace

RouteFigures route_rows(const RouteTask& task, std::size_t first, std::size_t count) {
  constexpr std::size_t step = GateSession::rows_at_once;
  std::optional<GateSession> session;
  if (task.gate != nullptr) session.emplace(*task.gate, task.bias);
  const std::uint16_t* const gated = task.norm_weight == nullptr ? task.rows : task.normed;
  const std::size_t end = first + count;
  RouteFigures figures;
  for (std::size_t at = first; at < end; at += step) {
    const std::size_t rows = std::min(step, end - at);
    const Clock::time_point start = Clock::now();
    figures.non_finite += prepare(task, at, rows);
    const Clock::time_point prepared = Clock::now();
    figures.norm_seconds += seconds_between(start, prepared);
    if (!session) continue;
    const std::size_t slot = at * task.gate->routing().top_k;
    session->route(gated + at * task.hidden, rows, task.rows + (at + rows) * task.hidden, task.experts + slot,
                   task.weights + slot);
    figures.gate_seconds += seconds_between(prepared, Clock::now());
  }
  return figures;
}

}  // namespace switchyard
