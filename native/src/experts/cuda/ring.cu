#include <algorithm>
#include <cstring>
#include <utility>

#include "experts/cuda/kernels.h"
#include "experts/cuda/nvtx.h"
#include "experts/cuda/ring.h"

namespace switchyard::cuda {
namespace {

constexpr size_t element_bytes = sizeof(uint16_t);

const CudaExpert& expert_of(const Segment& segment) { return static_cast<const CudaExpert&>(*segment.expert); }

/** Where the parts of a batch's table begin, in bytes: what is needed alone has room. */
struct TableLayout {
  size_t fetched = 0, sources, weights, bytes;

  explicit TableLayout(const Plan& plan)
      : sources(plan.fetched.size() * sizeof plan.fetched[0]),
        weights(sources + (plan.direct() ? 0 : plan.sources.size() * sizeof plan.sources[0])),
        bytes(weights + plan.weights.size() * sizeof plan.weights[0]) {}
};

constexpr size_t table_bytes_max = batch_rows_max * (sizeof(uint16_t*) + sizeof(uint32_t) + sizeof(float));

}  // namespace

Ring::Ring(int device, std::function<void(Slot&)> copied_out) : copied_out_(std::move(copied_out)) {
  const std::string name = "a batch on cuda:" + std::to_string(device);
  for (Slot& slot : slots_) {
    slot.copied_out = &copied_out_;
    slot.host_table.reserve(table_bytes_max, name);
    slot.table.reserve(table_bytes_max, name);
  }
  origin_.record(compute_);
}

Ring::~Ring() { abandon(); }

void Ring::reserve(const Shape& shape) {
  const size_t rows_bytes = batch_rows_max * shape.hidden * element_bytes;
  const size_t padded_bytes = batch_rows_max * shape.hidden_padded() * element_bytes;
  for (Slot& slot : slots_) {
    slot.staging_in.reserve(rows_bytes, "rows on their way in");
    slot.staging_out.reserve(rows_bytes, "rows on their way out");
    slot.landing.reserve(landing_rows_per_row * rows_bytes, "rows on their way in");
    slot.output.reserve(padded_bytes, "rows on their way out");
  }
  gathered_.reserve(padded_bytes, "gathered rows");
  intermediate_.reserve(batch_rows_max * shape.intermediate() * element_bytes, "intermediate rows");
}

Slot* Ring::free_slot() {
  const auto found = std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.busy; });
  return found == slots_.end() ? nullptr : &*found;
}

bool Ring::idle() const {
  return std::none_of(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.busy; });
}

void Ring::launch(Slot& slot) {
  const Range range("launch batch");
  slot.busy = true;
  const size_t hidden = slot.plan.segments.front().expert->hidden();
  copy_in(slot, hidden);
  compute(slot);
  copy_out(slot, hidden);
  // In a stream of its own: what is queued behind a host function waits for the host.
  slot.copy_out.end.hold(tell_);
  check(cudaLaunchHostFunc(tell_, on_copied_out, &slot), "to queue a host function");
}

void Ring::copy_in(Slot& slot, size_t hidden) {
  const Range range("copy in");
  const Plan& plan = slot.plan;
  const size_t row_bytes = hidden * element_bytes;
  auto* const staging = slot.staging_in.as<uint16_t>();
  for (size_t i = 0; i < plan.staged.size(); ++i) std::memcpy(staging + i * hidden, plan.staged[i], row_bytes);

  slot.copy_in.begin.record(copy_in_);
  copy_table(slot);
  auto* const landing = slot.landing.as<uint16_t>();
  for (const SpanCopy& span : plan.spans) {
    check(cudaMemcpyAsync(landing + span.landing_row * hidden, span.source, span.rows * row_bytes, cudaMemcpyHostToDevice, copy_in_),
          "to copy rows in");
  }
  if (!plan.staged.empty()) {
    check(cudaMemcpyAsync(landing + plan.staged_landing_row * hidden, staging, plan.staged.size() * row_bytes, cudaMemcpyHostToDevice, copy_in_),
          "to copy rows in");
  }
  if (!plan.fetched.empty()) {
    fetch_rows(slot.table.as<const uint16_t* const>(), plan.fetched.size(), hidden, landing + plan.fetched_landing_row * hidden, copy_in_);
  }
  slot.copy_in.end.record(copy_in_);
}

void Ring::copy_table(Slot& slot) {
  const Plan& plan = slot.plan;
  const TableLayout layout(plan);
  if (layout.bytes == 0) return;
  auto* const table = slot.host_table.as<std::byte>();
  const auto put = [table](size_t from, size_t to, const void* values) {
    if (to > from) std::memcpy(table + from, values, to - from);
  };
  put(layout.fetched, layout.sources, plan.fetched.data());
  put(layout.sources, layout.weights, plan.sources.data());
  put(layout.weights, layout.bytes, plan.weights.data());
  check(cudaMemcpyAsync(slot.table.as<std::byte>(), table, layout.bytes, cudaMemcpyHostToDevice, copy_in_), "to copy a table in");
}

void Ring::compute(Slot& slot) {
  const Range range("compute");
  const Plan& plan = slot.plan;
  const Shape& shape = expert_of(plan.segments.front()).shape();
  const auto* const landing = slot.landing.as<uint16_t>();
  const TableLayout layout(plan);
  const auto* const table = slot.table.as<std::byte>();
  const auto* const sources = reinterpret_cast<const uint32_t*>(table + layout.sources);
  const auto* const weights = plan.weights.empty() ? nullptr : reinterpret_cast<const float*>(table + layout.weights);
  const size_t stride = shape.hidden_padded();

  slot.copy_in.end.hold(compute_);
  slot.compute.begin.record(compute_);
  std::vector<SegmentWork> works;
  works.reserve(plan.segments.size());
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const Segment& segment = plan.segments[i];
    auto* const gathered = gathered_.as<uint16_t>() + segment.output_row * stride;
    // Neighbouring segments are gathered by one kernel.
    if (!segment.direct && (i == 0 || plan.segments[i - 1].direct)) {
      size_t end_row = segment.output_row;
      for (size_t j = i; j < plan.segments.size() && !plan.segments[j].direct; ++j) end_row += plan.segments[j].rows;
      gather_rows(landing, sources + segment.output_row, weights == nullptr ? nullptr : weights + segment.output_row, shape,
                  end_row - segment.output_row, gathered, compute_);
    }
    works.push_back({.expert = &expert_of(segment),
                     .row_count = segment.rows,
                     .rows = segment.direct ? landing + segment.landing_row * stride : gathered,
                     .intermediate = intermediate_.as<uint16_t>() + segment.output_row * shape.intermediate(),
                     .output = slot.output.as<uint16_t>() + segment.output_row * stride});
  }
  ffn_.run(works, compute_);
  slot.compute.end.record(compute_);
}

void Ring::copy_out(Slot& slot, size_t hidden) {
  const Range range("copy out");
  const size_t row_bytes = hidden * element_bytes;
  const size_t stride = padded(hidden);
  slot.compute.end.hold(copy_out_);
  slot.copy_out.begin.record(copy_out_);
  for (const OutputCopy& copy : slot.plan.outputs) {
    uint16_t* const target = copy.pinned ? copy.target : slot.staging_out.as<uint16_t>() + copy.output_row * hidden;
    const uint16_t* const source = slot.output.as<uint16_t>() + copy.output_row * stride;
    // One run of bytes where rows have no padding.
    const cudaError_t status = stride == hidden ? cudaMemcpyAsync(target, source, copy.rows * row_bytes, cudaMemcpyDeviceToHost, copy_out_)
                                                : cudaMemcpy2DAsync(target, row_bytes, source, stride * element_bytes, row_bytes, copy.rows,
                                                                    cudaMemcpyDeviceToHost, copy_out_);
    check(status, "to copy rows out");
  }
  slot.copy_out.end.record(copy_out_);
}

void CUDART_CB Ring::on_copied_out(void* data) {
  Slot& slot = *static_cast<Slot*>(data);
  (*slot.copied_out)(slot);
}

BatchTimes Ring::finish(Slot& slot) {
  const Range range("finish batch");
  const size_t hidden = slot.plan.segments.front().expert->hidden();
  for (const OutputCopy& copy : slot.plan.outputs) {
    if (copy.pinned) continue;
    std::memcpy(copy.target, slot.staging_out.as<uint16_t>() + copy.output_row * hidden, copy.rows * hidden * element_bytes);
  }
  const auto interval = [this](const Slot::Interval& events) {
    return BatchTimes::Interval{events.begin.seconds_since(origin_), events.end.seconds_since(events.begin)};
  };
  // The end is now, give or take the way through the host callback.
  const std::chrono::duration<double> since(slot.copy_out.end.seconds_since(slot.compute.begin));
  const auto now = std::chrono::steady_clock::now();
  const BatchTimes times{.started = now - std::chrono::duration_cast<std::chrono::steady_clock::duration>(since),
                         .copy_in = interval(slot.copy_in),
                         .compute = interval(slot.compute),
                         .copy_out = interval(slot.copy_out),
                         .rows = slot.plan.rows};
  // Not before nothing can throw any more: the pieces of busy slots are failed when the device is.
  slot.busy = false;
  return times;
}

void Ring::probe() const {
  for (const Stream* stream : streams()) {
    const cudaError_t status = cudaStreamQuery(*stream);
    // Not an error, but it is kept like one, and the check behind the next kernel would find it.
    if (status == cudaErrorNotReady) cudaGetLastError();
    else check(status, "while it worked");
  }
}

std::vector<Piece> Ring::abandon() {
  // In this order, because each waits for the one before. A device that has failed returns at once.
  for (const Stream* stream : streams()) cudaStreamSynchronize(*stream);
  std::vector<Piece> pieces;
  for (Slot& slot : slots_) {
    if (std::exchange(slot.busy, false)) pieces.insert(pieces.end(), slot.pieces.begin(), slot.pieces.end());
    slot.pieces.clear();
  }
  return pieces;
}

}  // namespace switchyard::cuda
