#include "addon/model_operations.h"

#include <memory>

#include "addon/weight_file_handle.h"
#include "addon/slab_handle.h"
#include "model/tokens.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t side_max = uint64_t{1} << 44;

/** `Element`: uint16_t for BF16, float for the values as they are stored. */
template <typename Element>
void prepare_read(const Napi::CallbackInfo& info, Operation& operation) {
  const TensorSource source = to_tensor(Fields(info[0], "source"));
  const auto slab = std::make_shared<SlabRef>();
  operation.run = [source, slab] {
    *slab = arena().allocate(source.elements() * sizeof(Element));
    read_elements_in_parallel(source, 0, source.elements(), reinterpret_cast<Element*>((*slab)->data()));
  };
  operation.result = [slab](Napi::Env env) { return SlabHandle::create(env, std::move(*slab)); };
}

void prepare_synthesize(const Napi::CallbackInfo& info, Operation& operation) {
  const Fields options(info[0], "");
  const uint64_t seed = options.integer("seed", 0, safe_integer_max);
  const uint64_t first = options.integer("firstToken", 0, safe_integer_max - rows_max);
  const uint64_t count = options.integer("count", 1, rows_max);
  const uint64_t hidden = options.integer("hidden", 1, hidden_max);
  const auto source = std::make_shared<const TokenSource>(seed, hidden, options.number("skew"),
                                                          options.integer("topics", 1, rows_max));
  const auto slab = std::make_shared<SlabRef>();
  operation.run = [=] {
    *slab = allocate_rows(count, hidden);
    for_rows(count, hidden, [&](size_t begin, size_t rows) {
      source->read(first + begin, rows, rows_of(*slab) + begin * hidden);
    });
  };
  operation.result = [slab](Napi::Env env) { return SlabHandle::create(env, std::move(*slab)); };
}

ZeroPoints to_zeros(const Fields& fields) {
  return {
      .file = WeightFileHandle::of(fields.value("file"), fields.name("file")),
      .byte_offset = fields.integer("byteOffset", 0, safe_integer_max),
      .packed = fields.boolean("packed"),
  };
}

ColumnGroups to_groups(const Fields& fields) {
  return {
      .file = WeightFileHandle::of(fields.value("file"), fields.name("file")),
      .byte_offset = fields.integer("byteOffset", 0, safe_integer_max),
  };
}

Scales to_scales(const Fields& fields) {
  constexpr ScaleDtype dtypes[] = {ScaleDtype::bf16, ScaleDtype::f16, ScaleDtype::f32, ScaleDtype::f8_e8m0};
  return {
      .file = WeightFileHandle::of(fields.value("file"), fields.name("file")),
      .byte_offset = fields.integer("byteOffset", 0, safe_integer_max),
      .dtype = dtypes[fields.choice("dtype", {"BF16", "F16", "F32", "F8_E8M0"})],
      .columns = fields.integer("columns", 1, side_max),
      .block_rows = fields.integer("blockRows", 1, side_max),
      .block_columns = fields.integer("blockColumns", 1, side_max),
      .first_row = fields.integer("firstRow", 0, side_max),
      .row_step = fields.integer("rowStep", 1, side_max),
      .first_column = fields.integer("firstColumn", 0, side_max),
      .transposed = fields.has("transposed") && fields.boolean("transposed"),
      .zeros = fields.has("zeros") ? std::optional(to_zeros(fields.fields("zeros"))) : std::nullopt,
      .groups = fields.has("groups") ? std::optional(to_groups(fields.fields("groups"))) : std::nullopt,
  };
}

}  // namespace

TensorSource to_tensor(const Fields& fields) {
  TensorSource source;
  source.rows = fields.integer("rows", 1, side_max);
  source.columns = fields.integer("columns", 1, side_max);
  if (fields.choice("kind", {"file", "synthetic"}) == 0) {
    constexpr StoredDtype dtypes[] = {StoredDtype::bf16,    StoredDtype::f16, StoredDtype::f32, StoredDtype::f8_e4m3,
                                      StoredDtype::f4_e2m1, StoredDtype::i8,  StoredDtype::u8,  StoredDtype::u4};
    source.origin = FileTensor{
        .file = WeightFileHandle::of(fields.value("file"), fields.name("file")),
        .byte_offset = fields.integer("byteOffset", 0, safe_integer_max),
        .dtype = dtypes[fields.choice("dtype", {"BF16", "F16", "F32", "F8_E4M3", "F4_E2M1", "I8", "U8", "U4"})],
        .row_stride = fields.has("rowStride") ? fields.integer("rowStride", 1, side_max) : source.columns,
        .column_stride = fields.has("columnStride") ? fields.integer("columnStride", 1, side_max) : 1,
        .scales = fields.has("scale") ? std::optional(to_scales(fields.fields("scale"))) : std::nullopt,
    };
  } else {
    source.origin = SyntheticTensor{
        .seed = fields.integer("seed", 0, safe_integer_max),
        .stream = fields.integer("stream", 0, safe_integer_max),
        .scale = static_cast<float>(fields.number("scale")),
        .center = static_cast<float>(fields.number("center")),
    };
  }
  check_tensor(source, fields.name("rows x columns"));
  turn_columns(source);
  return source;
}

void export_model_operations(Napi::Env env, Napi::Object exports) {
  WeightFileHandle::define(env);
  export_function(exports, "openWeightFile", [](const Napi::CallbackInfo& info) {
    return WeightFileHandle::create(info.Env(), WeightFile::open(to_text(info[0], "path")));
  });
  export_operation(exports, "readTensor", prepare_read<uint16_t>);
  export_operation(exports, "readFloats", prepare_read<float>);
  export_operation(exports, "synthesizeTokens", prepare_synthesize);
}

}  // namespace switchyard::addon
