#include "addon/row_operations.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "addon/parallel.h"
#include "addon/slab_handle.h"
#include "kernels/combine.h"
#include "kernels/ingest.h"
#include "kernels/norm.h"
#include "kernels/pack.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t workers_max = 65536;

/** The promise's value is the slab that `run` fills. */
std::shared_ptr<SlabRef> result_slab(Operation& operation) {
  const auto slab = std::make_shared<SlabRef>();
  operation.result = [slab](Napi::Env env) { return SlabHandle::create(env, std::move(*slab)); };
  return slab;
}

/** Throws unless `length` bytes from `offset` on lie in the slab. */
void check_range(const SlabRef& slab, const std::string& field, uint64_t offset, uint64_t length) {
  if (offset <= slab->size() && length <= slab->size() - offset) return;
  throw_invalid(field, offset,
                "offsets that leave room for " + std::to_string(length) + " bytes in the " +
                    std::to_string(slab->size()) + " of the slab");
}

/** Bytes that an operation reads, and what keeps them. */
struct Source {
  std::span<const uint8_t> bytes;
  SlabRef slab;
};

/** Bytes in a Uint8Array, or in part of a slab. */
Source to_source(Operation& operation, const Napi::Value& value) {
  if (value.IsTypedArray() || !value.IsObject()) return {held_span<uint8_t>(operation, value, "source"), SlabRef()};
  const Fields range(value, "source");
  const SlabRef slab = SlabHandle::of(range.value("slab"), range.name("slab"));
  const uint64_t offset = range.integer("byteOffset", 0, safe_integer_max);
  const uint64_t length = range.integer("byteLength", 0, safe_integer_max);
  check_range(slab, range.name("byteOffset"), offset, length);
  return {{reinterpret_cast<const uint8_t*>(slab->data()) + offset, length}, slab};
}

void prepare_ingest(const Napi::CallbackInfo& info, Operation& operation) {
  const Source source = to_source(operation, info[0]);
  const SlabRef target = SlabHandle::of(info[1], "target");
  const uint64_t offset = to_integer(info[2], "byteOffset", 0, safe_integer_max);
  const uint64_t hidden = to_integer(info[3], "hidden", 1, hidden_max);
  const uint64_t row_bytes = hidden * sizeof(uint16_t);
  if (source.bytes.size() % row_bytes != 0) {
    throw_invalid("source.length", source.bytes.size(), "multiples of a row's " + std::to_string(row_bytes) + " bytes");
  }
  if (offset % sizeof(uint16_t) != 0) throw_invalid("byteOffset", offset, "even numbers");
  check_range(target, "byteOffset", offset, source.bytes.size());
  const auto not_finite = std::make_shared<std::atomic<size_t>>(0);
  operation.run = [=] {
    for_rows(source.bytes.size() / row_bytes, hidden, [&](size_t first, size_t count) {
      const auto* bytes = reinterpret_cast<const std::byte*>(source.bytes.data()) + first * row_bytes;
      auto* rows = reinterpret_cast<uint16_t*>(target->data() + offset + first * row_bytes);
      *not_finite += ingest_rows(bytes, count, hidden, rows);
    });
  };
  operation.result = [not_finite](Napi::Env env) { return Napi::Number::New(env, not_finite->load()); };
}

void prepare_count_non_finite(const Napi::CallbackInfo& info, Operation& operation) {
  const uint64_t row_count = to_integer(info[1], "rowCount", 1, rows_max);
  const uint64_t hidden = to_integer(info[2], "hidden", 1, hidden_max);
  const SlabRef rows = slab_of_rows(info[0], "rows", row_count, hidden);
  const auto not_finite = std::make_shared<std::atomic<size_t>>(0);
  operation.run = [=] {
    for_rows(row_count, hidden, [&](size_t first, size_t count) {
      *not_finite += count_non_finite(rows_of(rows) + first * hidden, count, hidden);
    });
  };
  operation.result = [not_finite](Napi::Env env) { return Napi::Number::New(env, not_finite->load()); };
}

void prepare_find_non_finite(const Napi::CallbackInfo& info, Operation& operation) {
  const uint64_t first_row = to_integer(info[1], "firstRow", 0, rows_max);
  const uint64_t row_count = to_integer(info[2], "rowCount", 1, rows_max);
  const uint64_t hidden = to_integer(info[3], "hidden", 1, hidden_max);
  const SlabRef rows = slab_of_rows(info[0], "rows", first_row + row_count, hidden);
  const auto found = std::make_shared<size_t>();
  operation.run = [=] { *found = find_non_finite(rows_of(rows) + first_row * hidden, row_count, hidden); };
  operation.result = [=](Napi::Env env) -> Napi::Value {
    if (*found == row_count) return env.Null();
    return Napi::Number::New(env, static_cast<double>(first_row + *found));
  };
}

void prepare_copy_out(const Napi::CallbackInfo& info, Operation& operation) {
  const SlabRef source = SlabHandle::of(info[0], "source");
  const uint64_t offset = to_integer(info[1], "byteOffset", 0, safe_integer_max);
  const auto target = to_span<uint8_t>(info[2], "target");
  operation.hold(info[2]);
  check_range(source, "byteOffset", offset, target.size());
  operation.run = [=] {
    constexpr size_t part = 256 * 1024;
    for_ranges(target.size(), part, [&](size_t first, size_t count) {
      std::memcpy(target.data() + first, source->data() + offset + first, count);
    });
  };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

void prepare_normalize(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const uint64_t row_count = options.integer("rowCount", 1, rows_max);
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const SlabRef rows = slab_of_rows(options.value("rows"), "rows", row_count, hidden);
  const SlabRef weight = slab_of_rows(options.value("weight"), "weight", 1, hidden);
  const auto epsilon = static_cast<float>(options.number("epsilon"));
  if (epsilon < 0) throw_invalid("epsilon", epsilon, "0 or more");
  const auto output = result_slab(operation);
  operation.run = [=] {
    *output = allocate_rows(row_count, hidden);
    for_rows(row_count, hidden, [&](size_t first, size_t count) {
      normalize_rows(rows_of(rows) + first * hidden, count, hidden, rows_of(weight), epsilon,
                     rows_of(*output) + first * hidden);
    });
  };
}

Napi::Object to_group(Napi::Env env, const GroupPlan& plan) {
  auto group = Napi::Object::New(env);
  group.Set("worker", plan.worker);
  group.Set("rowCount", static_cast<double>(plan.tokens.size()));
  group.Set("segments", to_array<uint32_t>(env, plan.segments));
  group.Set("rowIndices", to_array<uint32_t>(env, plan.row_indices));
  group.Set("slots", to_array<uint32_t>(env, plan.slots));
  group.Set("weights", to_array<float>(env, plan.weights));
  group.Set("tokens", to_array<uint32_t>(env, plan.tokens));
  return group;
}

GroupLimits to_limits(Operation& operation, const Fields& limits, uint64_t workers) {
  const auto of = [&](const char* field) {
    return held_span<double>(operation, limits.value(field), limits.name(field), workers);
  };
  return {of("rowsMax"), of("entriesMax"), of("costMax"), limits.number("rowCost"), limits.number("entryCost")};
}

/** Room for the metadata of an answer. */
constexpr size_t answer_metadata_bytes = 256;

void prepare_group(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const uint64_t row_count = options.integer("rowCount", 1, rows_max);
  const uint64_t top_k = options.integer("topK", 1, top_k_max);
  const uint64_t workers = options.integer("workers", 1, workers_max);
  const auto experts = held_span<uint32_t>(operation, options.value("experts"), "experts", row_count * top_k);
  const auto weights = held_span<float>(operation, options.value("weights"), "weights", row_count * top_k);
  const auto worker_of = held_span<uint32_t>(operation, options.value("workerOf"), "workerOf");
  const GroupLimits limits =
      options.is_null("limits") ? GroupLimits() : to_limits(operation, options.fields("limits"), workers);
  const auto groups = std::make_shared<std::vector<GroupPlan>>();
  operation.run = [=] { *groups = plan_groups(experts, weights, top_k, worker_of, workers, limits); };
  operation.result = [groups](Napi::Env env) {
    auto result = Napi::Array::New(env, groups->size());
    for (uint32_t i = 0; i < groups->size(); ++i) result.Set(i, to_group(env, (*groups)[i]));
    return result;
  };
}

void prepare_pack(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const uint64_t tail = options.integer("tailBytes", 0, safe_integer_max);
  const SlabRef rows = slab_of_rows(options.value("rows"), "rows", 1, hidden);
  const auto indices = held_span<uint32_t>(operation, options.value("indices"), "indices");
  if (indices.empty()) throw_invalid("indices.length", 0, "1 or more");
  const uint64_t row_count = rows->size() / (hidden * sizeof(uint16_t));
  for (const uint32_t index : indices) {
    if (index >= row_count) throw_invalid("indices", index, "below " + std::to_string(row_count));
  }
  const auto output = result_slab(operation);
  operation.run = [=] {
    *output = allocate_rows(indices.size(), hidden, tail);
    for_rows(indices.size(), hidden, [&](size_t first, size_t count) {
      pack_rows(rows_of(rows), hidden * sizeof(uint16_t), indices, first, count, rows_of(*output));
    });
  };
}

/** Parts with the slabs that keep their rows. */
struct Parts {
  std::vector<SlabRef> slabs;
  std::vector<CombinePart> parts;
  size_t row_count = 0;
};

Parts to_parts(const Napi::Value& value, uint64_t hidden, Operation& operation) {
  if (!value.IsArray()) throw_invalid("parts", show(value), "an array");
  const auto array = value.As<Napi::Array>();
  Parts parts;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Fields part(array.Get(i), "parts[" + std::to_string(i) + "]");
    const auto targets = held_span<uint32_t>(operation, part.value("targets"), part.name("targets"));
    parts.slabs.push_back(slab_of_rows(part.value("rows"), part.name("rows"), targets.size(), hidden));
    parts.parts.push_back({rows_of(parts.slabs.back()), targets});
    parts.row_count += targets.size();
  }
  return parts;
}

struct Combined {
  SlabRef rows;
  /** Of them, those that hold NaN or infinity. */
  std::atomic<size_t> non_finite = 0;
};

/** Sums what the plan says, over the pool. */
void combine(const CombinePlan& plan, size_t hidden, const SlabRef& residual, Combined& combined) {
  combined.rows = allocate_rows(plan.row_count(), hidden, answer_metadata_bytes);
  for_rows(plan.row_count(), hidden, [&](size_t first, size_t count) {
    combined.non_finite += combine_rows(plan, first, count, hidden, residual ? rows_of(residual) : nullptr,
                                        rows_of(combined.rows));
  });
}

void prepare_combine(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const bool exact = options.choice("mode", {"exact", "partial"}) == 0;
  const uint64_t row_count = options.integer("rowCount", 1, rows_max);
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const uint64_t top_k = options.integer("topK", 1, top_k_max);
  const auto weights =
      held_span_or_null<float>(operation, options.value("weights"), "weights", row_count * top_k);
  const SlabRef residual =
      options.is_null("residual") ? SlabRef() : slab_of_rows(options.value("residual"), "residual", row_count, hidden);
  const Parts parts = to_parts(options.value("parts"), hidden, operation);
  // Checked before the plan takes memory for what is announced.
  const uint64_t needed = exact ? row_count * top_k : row_count;
  if (parts.row_count < needed) {
    throw Error(Code::data_loss, "the parts have " + std::to_string(parts.row_count) + " rows of the " +
                                     std::to_string(needed) + " that are needed");
  }
  const auto combined = std::make_shared<Combined>();
  operation.run = [=] {
    const CombinePlan plan = exact ? plan_combine_exact(parts.parts, row_count, top_k, hidden, weights)
                                   : plan_combine_partial(parts.parts, row_count, hidden);
    combine(plan, hidden, residual, *combined);
  };
  operation.result = [combined](Napi::Env env) {
    auto result = Napi::Object::New(env);
    result.Set("rows", SlabHandle::create(env, std::move(combined->rows)));
    result.Set("nonFinite", static_cast<double>(combined->non_finite));
    return result;
  };
}

void prepare_reduce(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const auto indices = held_span<uint32_t>(operation, options.value("rowIndices"), "rowIndices");
  const uint64_t output_rows = options.integer("outputRows", 1, std::min<uint64_t>(rows_max, indices.size()));
  const auto weights = held_span<float>(operation, options.value("weights"), "weights", indices.size());
  const SlabRef rows = slab_of_rows(options.value("rows"), "rows", indices.size(), hidden);
  const auto combined = std::make_shared<Combined>();
  operation.run = [=] {
    combine(plan_reduce(rows_of(rows), indices, weights, output_rows, hidden), hidden, SlabRef(), *combined);
  };
  operation.result = [combined](Napi::Env env) { return SlabHandle::create(env, std::move(combined->rows)); };
}

}  // namespace

void export_row_operations(Napi::Object exports) {
  export_operation(exports, "ingestRows", prepare_ingest);
  export_operation(exports, "countNonFinite", prepare_count_non_finite);
  export_operation(exports, "findNonFinite", prepare_find_non_finite);
  export_operation(exports, "copyOut", prepare_copy_out);
  export_operation(exports, "normalizeRows", prepare_normalize);
  export_operation(exports, "groupRows", prepare_group);
  export_operation(exports, "packRows", prepare_pack);
  export_operation(exports, "combineRows", prepare_combine);
  export_operation(exports, "reduceRows", prepare_reduce);
}

}  // namespace switchyard::addon
