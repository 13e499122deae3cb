#include "addon/routed_handle.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "addon/gate_handle.h"
#include "addon/parallel.h"
#include "addon/routing_table_handle.h"
#include "addon/slab_handle.h"
#include "kernels/route.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t workers_max = 65536;
/** Enough blocks to outweigh the hand-over to another thread. */
/** What it takes to group a slot, as elements of rows that are copied meanwhile. */
constexpr size_t elements_per_slot = 16;
constexpr size_t rows_per_range = 4 * GateSession::rows_at_once;

/** The arguments of routeRows with what keeps their memory. */
struct Request {
  SlabRef rows;
  uint64_t row_count;
  uint64_t hidden;
  /** Empty: no norm. */
  SlabRef norm_weight;
  float epsilon = 0;
  float norm_offset = -0.0f;
  /** Null: the table has the choice, and there are no shared experts. */
  std::shared_ptr<const Gate> gate;
  /** The table has the choice; otherwise the table, if there is one, takes it. */
  bool given = true;
  std::span<const float> bias;
  /** [row_count], of a gate that is to choose and has a vocabulary, or isolates and is given them; otherwise empty. */
  std::vector<uint32_t> token_ids;
  std::shared_ptr<RoutingTable> table;
  uint64_t layer = 0;
  GroupTargets targets;
  bool weighted;
};

struct Answer {
  Routed routed;
  std::vector<GroupPlan> groups;
  SlabRef normed;
  std::vector<uint32_t> counts;
  RouteFigures figures;
  double group_seconds = 0;
};

GroupLimits to_limits(Operation& operation, const Fields& limits, uint64_t workers) {
  const auto of = [&](const char* field) {
    return held_span<double>(operation, limits.value(field), limits.name(field), workers);
  };
  return {of("rowsMax"), of("entriesMax"), of("costMax"), limits.number("rowCost"), limits.number("entryCost")};
}

void take_norm(const Fields& options, Request& request) {
  if (options.is_null("norm")) return;
  const Fields norm = options.fields("norm");
  request.norm_weight = slab_of_rows(norm.value("weight"), norm.name("weight"), 1, request.hidden);
  request.epsilon = static_cast<float>(norm.number("epsilon"));
  if (norm.has("offset") && norm.number("offset") != 0) request.norm_offset = static_cast<float>(norm.number("offset"));
  if (request.epsilon < 0) throw_invalid(norm.name("epsilon"), request.epsilon, "0 or more");
}

void take_gate(Operation& operation, const Fields& options, Request& request) {
  if (options.is_null("gate")) return;
  const Fields gate = options.fields("gate");
  request.gate = GateHandle::of(gate.value("weights"), gate.name("weights"));
  if (request.gate->hidden() != request.hidden) {
    throw_invalid("hidden", request.hidden, std::to_string(request.gate->hidden()) + ", as the gate has it");
  }
  request.given = gate.has("given") && gate.boolean("given");
  request.bias =
      held_span_or_null<float>(operation, gate.value("bias"), gate.name("bias"), request.gate->experts());
  const uint64_t vocabulary = request.gate->vocabulary();
  const bool wanted = vocabulary > 0 || (request.gate->isolates() && gate.has("tokenIds"));
  if (request.given || !wanted) return;
  const std::string field = gate.name("tokenIds");
  const auto ids = to_span<uint32_t>(gate.value("tokenIds"), field);
  if (ids.size() != request.row_count) throw_invalid(field + ".length", ids.size(), std::to_string(request.row_count));
  request.token_ids.assign(ids.begin(), ids.end());
  for (const uint32_t id : request.token_ids) {
    if (vocabulary > 0 && id >= vocabulary) throw_invalid(field, id, "0 to " + std::to_string(vocabulary - 1));
  }
}

void take_table(const Fields& options, Request& request) {
  if (options.is_null("table")) {
    if (request.given) throw_invalid("gate", "null", "a gate, or a table with the choice");
    return;
  }
  const Fields place = options.fields("table");
  request.table = RoutingTableHandle::of(place.value("routing"), place.name("routing"));
  const RoutingTable& table = *request.table;
  request.layer = place.integer("layer", 0, table.layers() - 1);
  if (table.tokens() < request.row_count) {
    throw_invalid("rowCount", request.row_count, "at most the table's " + std::to_string(table.tokens()) + " tokens");
  }
  if (request.gate && (request.gate->routing().top_k != table.top_k() ||
                       request.gate->experts() != table.experts_at(request.layer))) {
    throw_invalid(place.name("routing"), "a table of another shape", "one with the topK and the experts of the gate");
  }
}

WorkerPace to_pace(Operation& operation, const Fields& pace, uint64_t workers) {
  const auto of = [&](const char* field) {
    return held_span<double>(operation, pace.value(field), pace.name(field), workers);
  };
  const WorkerPace read{of("secondsQueued"), of("secondsPerRow")};
  for (const double seconds : read.seconds_queued) {
    if (!std::isfinite(seconds)) throw_invalid(pace.name("secondsQueued"), seconds, "finite numbers");
  }
  for (const double seconds : read.seconds_per_row) {
    if (!(seconds > 0 && std::isfinite(seconds))) throw_invalid(pace.name("secondsPerRow"), seconds, "above 0");
  }
  return read;
}

GroupTargets to_targets(Operation& operation, const Fields& options, size_t experts) {
  GroupTargets targets;
  const Fields copies = options.fields("copies");
  targets.copies.offsets =
      held_span<uint32_t>(operation, copies.value("offsets"), copies.name("offsets"), experts + 1);
  targets.copies.workers = held_span<uint32_t>(operation, copies.value("workers"), copies.name("workers"));
  targets.workers = options.integer("workers", 1, workers_max);
  if (!options.is_null("pace")) targets.pace = to_pace(operation, options.fields("pace"), targets.workers);
  if (!options.is_null("limits")) targets.limits = to_limits(operation, options.fields("limits"), targets.workers);
  return targets;
}

Request to_request(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  Request request;
  request.row_count = options.integer("rowCount", 1, rows_max);
  request.hidden = options.integer("hidden", 1, hidden_max);
  request.rows = slab_of_rows(options.value("rows"), "rows", request.row_count, request.hidden);
  take_norm(options, request);
  take_gate(operation, options, request);
  take_table(options, request);
  const size_t experts = request.gate ? request.gate->experts() + request.gate->shared() : request.table->experts_at(request.layer);
  request.targets = to_targets(operation, options, experts);
  request.weighted = options.boolean("weighted");
  return request;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/** Normalises and gates over the pool; the seconds of the stages are shares of the time that it took. */
RouteFigures route(const Request& request, Answer& answer) {
  const auto start = std::chrono::steady_clock::now();
  if (request.norm_weight) answer.normed = allocate_rows(request.row_count, request.hidden);
  const RouteTask task{
      .rows = rows_of(request.rows),
      .row_count = request.row_count,
      .hidden = request.hidden,
      .norm_weight = request.norm_weight ? rows_of(request.norm_weight) : nullptr,
      .epsilon = request.epsilon,
      .norm_offset = request.norm_offset,
      .normed = answer.normed ? rows_of(answer.normed) : nullptr,
      .gate = request.given && !(request.gate && request.gate->has_shared_gate()) ? nullptr : request.gate.get(),
      .given = request.given,
      .bias = request.bias,
      .token_ids = request.token_ids.empty() ? nullptr : request.token_ids.data(),
      .experts = answer.routed.experts.data(),
      .weights = answer.routed.weights.data(),
  };
  RouteFigures sum;
  std::mutex mutex;
  for_ranges(request.row_count, rows_per_range, [&](size_t first, size_t count) {
    const RouteFigures part = route_rows(task, first, count);
    const std::lock_guard lock(mutex);
    sum.non_finite += part.non_finite;
    sum.norm_seconds += part.norm_seconds;
    sum.gate_seconds += part.gate_seconds;
  });
  const double spent = sum.norm_seconds + sum.gate_seconds;
  // A few short rows may take no time that the clock sees.
  const double share = spent > 0 ? seconds_since(start) / spent : 0;
  return {sum.non_finite, sum.norm_seconds * share, sum.gate_seconds * share};
}

Choices choices_of(const Routed& routed) {
  const auto weights = routed.weighted ? std::span<const float>(routed.weights) : std::span<const float>();
  return {routed.experts, weights, routed.top_k};
}

void run(const Request& request, Answer& answer) {
  Routed& routed = answer.routed;
  const size_t slots = request.gate ? request.gate->slots() : request.table->top_k();
  routed.row_count = request.row_count;
  routed.top_k = slots;
  routed.experts.resize(request.row_count * slots);
  routed.weights.resize(request.row_count * slots);
  answer.figures = route(request, answer);
  const auto start = std::chrono::steady_clock::now();
  if (request.given) {
    request.table->gather(request.layer, request.row_count, slots, routed.experts.data(), routed.weights.data());
    if (request.gate && !request.gate->has_shared_gate()) {
      request.gate->share(request.row_count, routed.experts.data(), routed.weights.data());
    }
  } else if (request.table) {
    request.table->scatter(request.layer, request.row_count, slots, routed.experts.data(), routed.weights.data());
  }
  routed.weighted = request.weighted;
  routed.expert_count = request.targets.copies.experts();
  answer.counts.resize(routed.expert_count);
  answer.groups = plan_groups(choices_of(routed), request.targets);
  count_experts(routed.experts, answer.counts);
  answer.group_seconds = seconds_since(start);
}

/** Arrays of 4-byte elements side by side in one buffer: one of its own for each would cost more than what it holds. */
class PackedArrays {
 public:
  PackedArrays(Napi::Env env, size_t elements) : buffer_(Napi::ArrayBuffer::New(env, elements * 4)) {}

  template <typename Element>
  Napi::Value add(std::span<const Element> values) {
    static_assert(sizeof(Element) == 4);
    const size_t offset = std::exchange(used_, used_ + values.size_bytes());
    std::memcpy(static_cast<std::byte*>(buffer_.Data()) + offset, values.data(), values.size_bytes());
    return Napi::TypedArrayOf<Element>::New(buffer_.Env(), values.size(), buffer_, offset, ElementType<Element>::type);
  }

 private:
  Napi::ArrayBuffer buffer_;
  size_t used_ = 0;
};

size_t elements_of(const std::vector<GroupPlan>& plans) {
  size_t elements = 0;
  for (const GroupPlan& plan : plans) {
    elements += plan.segments.size() + plan.row_indices.size() + plan.weights.size() + plan.tokens.size();
  }
  return elements;
}

Napi::Object to_group(Napi::Env env, const GroupPlan& plan, bool weighted, PackedArrays& arrays) {
  auto group = Napi::Object::New(env);
  group.Set("worker", plan.worker == no_worker ? env.Null() : Napi::Number::New(env, plan.worker));
  group.Set("rowCount", static_cast<double>(plan.tokens.size()));
  group.Set("segments", arrays.add<uint32_t>(plan.segments));
  group.Set("rowIndices", arrays.add<uint32_t>(plan.row_indices));
  group.Set("weights", weighted ? arrays.add<float>(plan.weights) : env.Null());
  group.Set("tokens", arrays.add<uint32_t>(plan.tokens));
  return group;
}

/** Describes the plans, and adds them to those of `routed`. */
Napi::Array add_groups(Napi::Env env, std::vector<GroupPlan>& plans, Routed& routed, PackedArrays& arrays) {
  auto groups = Napi::Array::New(env, plans.size());
  for (uint32_t i = 0; i < plans.size(); ++i) {
    groups.Set(i, to_group(env, plans[i], routed.weighted, arrays));
    routed.groups.push_back(std::make_shared<const GroupPlan>(std::move(plans[i])));
  }
  return groups;
}

Napi::Value to_routed_rows(Napi::Env env, Answer& answer) {
  PackedArrays arrays(env, answer.counts.size() + elements_of(answer.groups));
  const auto counts = arrays.add<uint32_t>(answer.counts);
  const auto groups = add_groups(env, answer.groups, answer.routed, arrays);
  auto seconds = Napi::Object::New(env);
  seconds.Set("norm", answer.figures.norm_seconds);
  seconds.Set("gate", answer.figures.gate_seconds);
  seconds.Set("group", answer.group_seconds);
  auto rows = RoutedHandle::create(env, std::make_shared<Routed>(std::move(answer.routed)));
  rows.Set("normed", answer.normed ? SlabHandle::create(env, std::move(answer.normed)) : env.Null());
  rows.Set("nonFinite", static_cast<double>(answer.figures.non_finite));
  rows.Set("counts", counts);
  rows.Set("groups", groups);
  rows.Set("seconds", seconds);
  return rows;
}

/** What gating costs, in elements of rows: its weights are read once, and a multiplication takes an eighth of a copy. */
uint64_t gate_elements(const Request& request) {
  if (!request.gate) return 0;
  const uint64_t weights = request.gate->experts() * request.hidden;
  return std::max(weights, request.row_count * weights / 8);
}

void prepare_route(const Napi::CallbackInfo& info, Operation& operation) {
  const auto request = std::make_shared<const Request>(to_request(info, operation));
  const auto answer = std::make_shared<Answer>();
  operation.brief = is_brief(request->row_count * request->hidden) && is_brief(gate_elements(*request));
  operation.run = [=] { run(*request, *answer); };
  operation.result = [=](Napi::Env env) { return to_routed_rows(env, *answer); };
}

void prepare_regroup(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const std::shared_ptr<Routed> routed = RoutedHandle::of(options.value("routed"), "routed");
  const uint64_t group = options.integer("group", 0, routed->groups.size() - 1);
  const std::shared_ptr<const GroupPlan> plan = routed->groups[group];
  if (!plan) throw_invalid("group", group, "one in whose place there are no others yet");
  const GroupTargets targets = to_targets(operation, options, routed->expert_count);
  const auto plans = std::make_shared<std::vector<GroupPlan>>();
  routed->groups[group] = nullptr;
  operation.brief = is_brief(plan->slots.size() * elements_per_slot);
  operation.run = [=] {
    std::vector<uint32_t> slots = plan->slots;
    std::ranges::sort(slots);
    *plans = plan_groups(choices_of(*routed), targets, slots);
  };
  operation.result = [=](Napi::Env env) {
    PackedArrays arrays(env, elements_of(*plans));
    auto added = Napi::Object::New(env);
    added.Set("first", static_cast<double>(routed->groups.size()));
    added.Set("groups", add_groups(env, *plans, *routed, arrays));
    return added;
  };
}

}  // namespace

std::vector<RoutedHandle::PropertyDescriptor> RoutedHandle::properties() {
  return {InstanceMethod("release", &RoutedHandle::release)};
}

void export_routing(Napi::Env env, Napi::Object exports) {
  RoutedHandle::define(env);
  export_operation(exports, "routeRows", prepare_route);
  export_operation(exports, "regroupRows", prepare_regroup);
}

}  // namespace switchyard::addon
