#include "addon/row_operations.h"

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "addon/parallel.h"
#include "addon/routed_handle.h"
#include "addon/slab_handle.h"
#include "kernels/combine.h"
#include "kernels/non_finite.h"
#include "kernels/norm.h"
#include "kernels/pack.h"
#include "kernels/streaming.h"

namespace switchyard::addon {

namespace {

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

/** memcpy over the pool. */
void copy_in_parallel(void* to, const void* from, size_t bytes) {
  constexpr size_t part = 256 * 1024;
  for_ranges(bytes, part, [&](size_t first, size_t count) {
    copy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first, count,
         worth_streaming(bytes));
  });
}

void prepare_copy_in(const Napi::CallbackInfo& info, Operation& operation) {
  const Source source = to_source(operation, info[0]);
  const SlabRef target = SlabHandle::of(info[1], "target");
  const uint64_t offset = to_integer(info[2], "byteOffset", 0, safe_integer_max);
  check_range(target, "byteOffset", offset, source.bytes.size());
  operation.brief = is_brief(source.bytes.size() / sizeof(uint16_t));
  operation.run = [=] { copy_in_parallel(target->data() + offset, source.bytes.data(), source.bytes.size()); };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
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
  operation.brief = is_brief(target.size() / sizeof(uint16_t));
  operation.run = [=] { copy_in_parallel(target.data(), source->data() + offset, target.size()); };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

/** Room for the metadata of an answer. */
constexpr size_t answer_metadata_bytes = 256;

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
  operation.brief = is_brief(indices.size() * hidden);
  operation.run = [=] {
    *output = allocate_rows(indices.size(), hidden, tail);
    for_rows(indices.size(), hidden, [&](size_t first, size_t count) {
      pack_rows(rows_of(rows), hidden * sizeof(uint16_t), indices, first, count, rows_of(*output));
    });
  };
}

/** Results of routed rows, with what keeps them and their targets. */
struct Parts {
  std::vector<SlabRef> slabs;
  std::vector<std::shared_ptr<const GroupPlan>> groups;
  std::vector<CombinePart> parts;
};

/** `value`: one slab for each of the groups, null for those that others have replaced. */
Parts to_parts(const Napi::Value& value, const Routed& routed, bool exact, uint64_t hidden) {
  if (!value.IsArray()) throw_invalid("parts", show(value), "an array");
  const auto array = value.As<Napi::Array>();
  if (array.Length() != routed.groups.size()) {
    throw Error(Code::data_loss, std::to_string(array.Length()) + " parts of the " +
                                     std::to_string(routed.groups.size()) + " that are needed");
  }
  Parts parts;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const std::string name = "parts[" + std::to_string(i) + "]";
    const Napi::Value part = array.Get(i);
    const std::shared_ptr<const GroupPlan>& group = routed.groups[i];
    if (!group) {
      if (!part.IsNull()) throw_invalid(name, show(part), "null, as other groups have taken its place");
      continue;
    }
    if (part.IsNull()) throw Error(Code::data_loss, name + " is missing");
    const std::span<const uint32_t> targets = exact ? group->slots : group->tokens;
    parts.slabs.push_back(slab_of_rows(part, name, targets.size(), hidden));
    parts.groups.push_back(group);
    parts.parts.push_back({rows_of(parts.slabs.back()), targets});
  }
  return parts;
}

/** Throws DATA_LOSS unless the groups have every slot, and no slot twice: of sums that is not to be seen later. */
void check_slots(const Parts& parts, const Routed& routed) {
  std::vector<bool> filled(routed.row_count * routed.top_k);
  size_t slots = 0;
  for (const auto& group : parts.groups) {
    for (const uint32_t slot : group->slots) {
      if (filled[slot]) throw Error(Code::data_loss, "slot " + std::to_string(slot) + " is summed twice");
      filled[slot] = true;
    }
    slots += group->slots.size();
  }
  if (slots < filled.size()) {
    throw Error(Code::data_loss, std::to_string(slots) + " slots of " + std::to_string(filled.size()) + " are summed");
  }
}

struct Combined {
  SlabRef rows;
  /** Of them, those that hold NaN or infinity. */
  std::atomic<size_t> non_finite = 0;
};

/** An RMSNorm of sums, before the residual is added. */
struct OutputNorm {
  SlabRef weight;
  float epsilon;
};

/** The sums as what is summed. */
CombinePlan plan_of_sums(const uint16_t* sums, size_t row_count, size_t hidden) {
  CombinePlan plan;
  for (size_t t = 0; t <= row_count; ++t) plan.offsets.push_back(static_cast<uint32_t>(t));
  for (size_t t = 0; t < row_count; ++t) plan.rows.push_back(sums + t * hidden);
  plan.weights.assign(row_count, 1.0f);
  return plan;
}

/** Sums what the plan says, and normalises the sums, over the pool. */
void combine_normalised(const CombinePlan& plan, size_t hidden, const SlabRef& residual, const OutputNorm& norm, Combined& combined) {
  combined.rows = allocate_rows(plan.row_count(), hidden, answer_metadata_bytes);
  uint16_t* const output = rows_of(combined.rows);
  const CombinePlan sums = plan_of_sums(output, plan.row_count(), hidden);
  for_rows(plan.row_count(), hidden, [&](size_t first, size_t count) {
    combine_rows(plan, first, count, hidden, nullptr, output);
    uint16_t* const begin = output + first * hidden;
    normalize_rows(begin, count, hidden, rows_of(norm.weight), norm.epsilon, begin);
    combined.non_finite += combine_rows(sums, first, count, hidden, residual ? rows_of(residual) : nullptr, output);
  });
}

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
  const std::shared_ptr<const Routed> routed = RoutedHandle::of(options.value("routed"), "routed");
  const bool exact = options.choice("mode", {"exact", "partial"}) == 0;
  const bool weighted = options.boolean("weighted");
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const SlabRef residual = options.is_null("residual")
                               ? SlabRef()
                               : slab_of_rows(options.value("residual"), "residual", routed->row_count, hidden);
  std::optional<OutputNorm> norm;
  if (options.has("outputNorm")) {
    const Fields given = options.fields("outputNorm");
    norm = {slab_of_rows(given.value("weight"), given.name("weight"), 1, hidden), static_cast<float>(given.number("epsilon"))};
  }
  const Parts parts = to_parts(options.value("parts"), *routed, exact, hidden);
  const auto combined = std::make_shared<Combined>();
  operation.brief = is_brief(routed->row_count * (exact ? routed->top_k : parts.parts.size()) * hidden);
  operation.run = [=] {
    const std::span<const float> weights = weighted ? std::span<const float>(routed->weights) : std::span<const float>();
    if (!exact) check_slots(parts, *routed);
    const CombinePlan plan =
        exact ? plan_combine_exact(parts.parts, routed->row_count, routed->top_k, hidden, weights)
              : plan_combine_partial(parts.parts, routed->row_count, hidden);
    if (norm) combine_normalised(plan, hidden, residual, *norm, *combined);
    else combine(plan, hidden, residual, *combined);
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
  operation.brief = is_brief((indices.size() + output_rows) * hidden);
  operation.run = [=] {
    combine(plan_reduce(rows_of(rows), indices, weights, output_rows, hidden), hidden, SlabRef(), *combined);
  };
  operation.result = [combined](Napi::Env env) { return SlabHandle::create(env, std::move(combined->rows)); };
}

}  // namespace

void export_row_operations(Napi::Object exports) {
  export_operation(exports, "copyIn", prepare_copy_in);
  export_operation(exports, "findNonFinite", prepare_find_non_finite);
  export_operation(exports, "copyOut", prepare_copy_out);
  export_operation(exports, "packRows", prepare_pack);
  export_operation(exports, "combineRows", prepare_combine);
  export_operation(exports, "reduceRows", prepare_reduce);
}

}  // namespace switchyard::addon
