#include "addon/expert_handles.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <mutex>

#include "addon/clock.h"
#include "addon/cuda.h"
#include "addon/model_operations.h"
#include "addon/process.h"
#include "addon/slab_handle.h"
#include "kernels/non_finite.h"
#include "model/packed_tensor.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t threads_max = 1024;
constexpr uint64_t devices_max = 1024;
/** Brief calls of experts take so much longer than other operations that are. */
constexpr int experts_share = 8;

/** Puts the columns of rows in an order, if there is one. */
void put_in_order(const std::vector<uint32_t>& order, size_t row_count, uint8_t* rows) {
  std::vector<uint8_t> row(order.size());
  for (size_t i = 0; i < (order.empty() ? 0 : row_count); ++i, rows += row.size()) {
    std::ranges::copy_n(rows, static_cast<std::ptrdiff_t>(row.size()), row.begin());
    std::ranges::transform(order, rows, [&](uint32_t column) { return row[column]; });
  }
}

/** The same matrix as codes, if it is stored so. */
std::optional<PackedSource> to_packed(const TensorSource& source) {
  const size_t columns = columns_per_scale(source);
  if (columns == 0) return std::nullopt;
  const StoredDtype dtype = std::get<FileTensor>(source.origin).dtype;
  PackedSource packed;
  packed.columns_per_scale = columns;
  packed.type = dtype == StoredDtype::f8_e4m3   ? CodeType::f8_e4m3
                : dtype == StoredDtype::f4_e2m1 ? CodeType::f4_e2m1
                : dtype == StoredDtype::u4      ? CodeType::u4
                                                : CodeType::i8;
  const auto order = std::make_shared<std::vector<uint32_t>>();
  if (has_groups(source)) packed.order = [source, order] { return *order = read_column_order(source); };
  packed.codes = [source, order, type = packed.type](size_t first_row, size_t row_count, uint8_t* out) {
    read_codes(source, first_row, row_count, out);
    put_in_order(*order, row_count, out);
    if (type != CodeType::f8_e4m3) return true;
    // Both codes of NaN have the largest magnitude. To look for it takes the compiler one instruction for many codes; to compare each, many.
    constexpr uint8_t magnitude = 0x7f;
    uint8_t largest = 0;
    for (size_t i = 0; i < row_count * source.columns; ++i) largest = std::max<uint8_t>(largest, out[i] & magnitude);
    return largest < magnitude;
  };
  packed.scales = [source](size_t first_row, size_t row_count, float* out) { read_scales(source, first_row, row_count, out); };
  if (has_zeros(source)) packed.zeros = [source](size_t first_row, size_t row_count, int8_t* out) { read_zeros(source, first_row, row_count, out); };
  return packed;
}

/** `non_finite` counts while the matrix is read. */
MatrixSource to_matrix(const Fields& fields, size_t& non_finite) {
  const TensorSource source = to_tensor(fields);
  const auto read = [source, &non_finite](size_t first_row, size_t row_count, uint16_t* out) {
    const size_t elements = row_count * source.columns;
    read_elements_in_parallel(source, first_row * source.columns, elements, out);
    non_finite += count_non_finite_values(out, elements);
  };
  return {source.rows, source.columns, read, to_packed(source)};
}

/** As to_matrix, of a bias. */
std::function<std::vector<float>()> to_vector(const Fields& fields, size_t& non_finite) {
  return [source = to_tensor(fields), &non_finite] {
    std::vector<float> values(source.elements());
    read_elements(source, 0, values.size(), values.data());
    non_finite += std::ranges::count_if(values, [](float value) { return !std::isfinite(value); });
    return values;
  };
}

/** Tells where a tensor is: equal texts stand for the same weights. */
std::string place_of(const TensorSource& source) {
  if (const auto* const stored = std::get_if<FileTensor>(&source.origin)) return stored->file->identity() + "+" + std::to_string(stored->byte_offset);
  const auto& synthetic = std::get<SyntheticTensor>(source.origin);
  return std::to_string(synthetic.seed) + "+" + std::to_string(synthetic.stream);
}

LatentSource to_latent(const Fields& fields, NonFiniteWeights& non_finite) {
  LatentSource latent{
      .key = place_of(to_tensor(fields.fields("input"))) + " " + place_of(to_tensor(fields.fields("output"))),
      .input = to_matrix(fields.fields("input"), non_finite.latent_input),
      .output = to_matrix(fields.fields("output"), non_finite.latent_output),
  };
  if (!fields.is_null("inputBias")) latent.input_bias = to_vector(fields.fields("inputBias"), non_finite.latent_bias);
  return latent;
}

/** `bias` and more that is added. */
std::function<std::vector<float>()> with(std::function<std::vector<float>()> bias, std::function<std::vector<float>()> more) {
  if (!bias) return more;
  return [bias = std::move(bias), more = std::move(more)] {
    std::vector<float> sum = bias();
    std::ranges::transform(sum, more(), sum.begin(), std::plus());
    return sum;
  };
}

/** `non_finite` must outlive what is returned. */
ExpertSource to_source(const Fields& fields, NonFiniteWeights& non_finite) {
  ExpertSource source;
  source.activation = to_activation(fields);
  source.glu = to_glu(fields);
  if (fields.has("bias")) {
    const Fields bias = fields.fields("bias");
    if (!bias.is_null("gate")) source.gate_bias = to_vector(bias.fields("gate"), non_finite.gate_bias);
    source.up_bias = to_vector(bias.fields("up"), non_finite.up_bias);
    source.down_bias = to_vector(bias.fields("down"), non_finite.down_bias);
  }
  if (!fields.is_null("gate")) source.gate = to_matrix(fields.fields("gate"), non_finite.gate);
  source.up = to_matrix(fields.fields("up"), non_finite.up);
  source.down = to_matrix(fields.fields("down"), non_finite.down);
  if (fields.has("latent")) source.latent = to_latent(fields.fields("latent"), non_finite);
  if (fields.has("extraBias")) source.down_bias = with(source.down_bias, to_vector(fields.fields("extraBias"), non_finite.extra_bias));
  return source;
}

/** The rows of one expert, which is kept. */
struct HeldCall {
  std::shared_ptr<const LoadedExpert> expert;
  std::vector<ExpertInput> inputs;
};

bool are_brief(const ExpertBackend& backend, const std::vector<HeldCall>& calls) {
  std::vector<ExpertCall> all;
  for (const HeldCall& call : calls) all.push_back({*call.expert->expert, call.inputs});
  return backend.is_brief(all);
}

/** The calls of one forward() with what keeps their memory. */
struct Calls {
  std::vector<HeldCall> calls;
  std::vector<SlabRef> slabs;
};

/** What the ends of calls leave for the JS thread. */
struct Outcome {
  explicit Outcome(size_t calls) : times(calls) {}

  /** True for the last one. */
  bool end(size_t call, const ComputeTime& time, std::exception_ptr failure) {
    const std::lock_guard lock(mutex);
    times[call] = time;
    if (failure && !error) error = failure;
    return ++ended == times.size();
  }

  std::mutex mutex;
  size_t ended = 0;
  std::vector<ComputeTime> times;
  std::exception_ptr error;
};

void add_input(Calls& calls, HeldCall& call, const Fields& fields, Operation& operation) {
  const uint64_t row_bytes = call.expert->expert->hidden() * sizeof(uint16_t);
  const SlabRef rows = SlabHandle::of(fields.value("rows"), fields.name("rows"));
  const SlabRef output = SlabHandle::of(fields.value("output"), fields.name("output"));
  ExpertInput input;
  input.rows = rows_of(rows);
  input.row_count = rows->size() / row_bytes;
  input.indices = held_span<uint32_t>(operation, fields.value("indices"), fields.name("indices"));
  input.output = rows_of(output);
  input.output_row_count = output->size() / row_bytes;
  input.output_row = fields.integer("outputRow", 0, input.output_row_count);
  const auto weights = held_span_or_null<float>(operation, fields.value("inputWeights"),
                                                fields.name("inputWeights"), input.indices.size());
  if (!fields.is_null("inputWeights")) input.input_weights = weights.data();
  call.inputs.push_back(input);
  calls.slabs.push_back(rows);
  calls.slabs.push_back(output);
}

Napi::Array to_list(const Napi::Value& value, const std::string& field) {
  if (!value.IsArray()) throw_invalid(field, show(value), "an array");
  return value.As<Napi::Array>();
}

void add_call(Calls& calls, const Fields& fields, const std::shared_ptr<Device>& device, Operation& operation) {
  HeldCall& call = calls.calls.emplace_back();
  call.expert = ExpertHandle::of(fields.value("expert"), fields.name("expert"));
  if (call.expert->device != device) {
    throw_invalid(fields.name("expert"), "of another backend", "experts that this backend loaded");
  }
  const auto inputs = to_list(fields.value("inputs"), fields.name("inputs"));
  for (uint32_t i = 0; i < inputs.Length(); ++i) {
    add_input(calls, call, Fields(inputs.Get(i), fields.name("inputs") + "[" + std::to_string(i) + "]"), operation);
  }
}

std::atomic<bool> device_listens{false};

}  // namespace

Device::Device(std::unique_ptr<ExpertBackend> opened) : backend(std::move(opened)) {
  auto listener = backend->memory_listener();
  if (listener == nullptr) return;
  // Slabs that one device registered must be unregistered by it, and the arena tells one.
  if (device_listens.exchange(true)) throw_invalid("device", std::string("a second one in this process"), "one a process");
  arena().set_listener(std::move(listener));
}

Device::~Device() {
  if (backend->memory_listener() == nullptr) return;
  arena().set_listener(nullptr);
  device_listens = false;
}

std::vector<ExpertHandle::PropertyDescriptor> ExpertHandle::properties() {
  return {
      InstanceAccessor<&ExpertHandle::bytes>("bytes"),
      InstanceAccessor<&ExpertHandle::hidden>("hidden"),
      InstanceAccessor<&ExpertHandle::ffn>("ffn"),
      InstanceAccessor<&ExpertHandle::non_finite>("nonFinite"),
      InstanceMethod("release", &ExpertHandle::release),
  };
}

Napi::Value ExpertHandle::bytes(const Napi::CallbackInfo& info) {
  return guard(info, "bytes", [&] { return Napi::Number::New(info.Env(), native()->expert->bytes()); });
}

Napi::Value ExpertHandle::hidden(const Napi::CallbackInfo& info) {
  return guard(info, "hidden", [&] { return Napi::Number::New(info.Env(), native()->expert->hidden()); });
}

Napi::Value ExpertHandle::ffn(const Napi::CallbackInfo& info) {
  return guard(info, "ffn", [&] { return Napi::Number::New(info.Env(), native()->expert->ffn()); });
}

Napi::Value ExpertHandle::non_finite(const Napi::CallbackInfo& info) {
  return guard(info, "nonFinite", [&] {
    const NonFiniteWeights& found = native()->non_finite;
    auto result = Napi::Object::New(info.Env());
    result.Set("gate", static_cast<double>(found.gate));
    result.Set("up", static_cast<double>(found.up));
    result.Set("down", static_cast<double>(found.down));
    result.Set("latentInput", static_cast<double>(found.latent_input));
    result.Set("latentOutput", static_cast<double>(found.latent_output));
    result.Set("gateBias", static_cast<double>(found.gate_bias));
    result.Set("upBias", static_cast<double>(found.up_bias));
    result.Set("downBias", static_cast<double>(found.down_bias));
    result.Set("latentBias", static_cast<double>(found.latent_bias));
    result.Set("extraBias", static_cast<double>(found.extra_bias));
    return result;
  });
}

std::vector<BackendHandle::PropertyDescriptor> BackendHandle::properties() {
  return {
      InstanceAccessor<&BackendHandle::description>("description"),
      InstanceMethod<&BackendHandle::load>("load"),
      InstanceMethod<&BackendHandle::forward>("forward"),
      InstanceMethod<&BackendHandle::figures>("figures"),
      InstanceMethod<&BackendHandle::close>("close"),
  };
}

Napi::Value BackendHandle::description(const Napi::CallbackInfo& info) {
  return guard(info, "description", [&] {
    const BackendDescription description = native()->backend->description();
    auto result = Napi::Object::New(info.Env());
    result.Set("kind", description.kind);
    result.Set("detail", description.detail);
    result.Set("threads", description.threads);
    result.Set("calls", description.calls);
    result.Set("rows", static_cast<double>(description.rows));
    const size_t bytes = description.memory_bytes;
    result.Set("memoryBytes", bytes > 0 ? Napi::Number::New(info.Env(), bytes) : info.Env().Null());
    return result;
  });
}

Napi::Value BackendHandle::load(const Napi::CallbackInfo& info) {
  return Operation::start(info, "load", [this](const Napi::CallbackInfo& info, Operation& operation) {
    const std::shared_ptr<Device> device = native();
    const auto loaded = std::make_shared<LoadedExpert>();
    loaded->device = device;
    const ExpertSource source = to_source(Fields(info[0], "source"), loaded->non_finite);
    operation.executor = [device](auto task) { device->loading.submit(std::move(task)); };
    operation.run = [loaded, source] { loaded->expert = loaded->device->backend->load(source); };
    operation.result = [loaded](Napi::Env env) { return ExpertHandle::create(env, loaded); };
  });
}

Napi::Value BackendHandle::forward(const Napi::CallbackInfo& info) {
  return Operation::start(info, "forward", [this](const Napi::CallbackInfo& info, Operation& operation) {
    const std::shared_ptr<Device> device = native();
    const auto list = to_list(info[0], "calls");
    if (list.Length() == 0) throw_invalid("calls.length", 0, "1 or more");
    const auto calls = std::make_shared<Calls>();
    for (uint32_t i = 0; i < list.Length(); ++i) {
      add_call(*calls, Fields(list.Get(i), "calls[" + std::to_string(i) + "]"), device, operation);
    }
    const auto outcome = std::make_shared<Outcome>(calls->calls.size());
    if (are_brief(*device->backend, calls->calls)) {
      operation.brief = true;
      operation.share = experts_share;
      operation.run = [device, calls, outcome] {
        for (size_t i = 0; i < calls->calls.size(); ++i) {
          const auto& [expert, inputs] = calls->calls[i];
          outcome->times[i].started = std::chrono::steady_clock::now();
          outcome->times[i].seconds = device->backend->forward(*expert->expert, inputs);
        }
      };
    } else {
      // The backend has threads of its own: the operation ends when the last call does. They may be in `done` a little longer, so
      // that must not keep slabs.
      operation.executor = [device, calls, outcome](auto task) {
        for (size_t i = 0; i < calls->calls.size(); ++i) {
          const auto done = [outcome, i, task](const ComputeTime& time, std::exception_ptr error) {
            if (outcome->end(i, time, error)) task();
          };
          device->backend->submit(*calls->calls[i].expert->expert, calls->calls[i].inputs, done);
        }
      };
      operation.run = [device, calls, outcome] {
        if (outcome->error) std::rethrow_exception(outcome->error);
      };
    }
    operation.result = [outcome](Napi::Env env) {
      auto times = Napi::Array::New(env, outcome->times.size());
      for (uint32_t i = 0; i < times.Length(); ++i) {
        const ComputeTime& time = outcome->times[i];
        auto result = Napi::Object::New(env);
        result.Set("startedMicroseconds", to_microseconds(time.started));
        result.Set("seconds", time.seconds);
        times.Set(i, result);
      }
      return times;
    };
  });
}

Napi::Value BackendHandle::figures(const Napi::CallbackInfo& info) {
  return guard(info, "figures", [&]() -> Napi::Value {
    const std::optional<DeviceFigures> figures = native()->backend->figures();
    if (!figures) return info.Env().Null();
    auto result = Napi::Object::New(info.Env());
    result.Set("copyInSeconds", figures->copy_in_seconds);
    result.Set("computeSeconds", figures->compute_seconds);
    result.Set("copyOutSeconds", figures->copy_out_seconds);
    result.Set("memoryUsedBytes", static_cast<double>(figures->memory_used_bytes));
    result.Set("memoryTotalBytes", static_cast<double>(figures->memory_total_bytes));
    const auto& utilization = figures->utilization;
    result.Set("utilization", utilization ? Napi::Number::New(info.Env(), *utilization) : info.Env().Null());
    return result;
  });
}

Napi::Value BackendHandle::close(const Napi::CallbackInfo& info) {
  if (!released()) {
    native()->loading.close();
  }
  return release(info);
}

Activation to_activation(const Fields& fields) {
  constexpr Activation activations[] = {Activation::swiglu, Activation::geglu, Activation::gelu, Activation::relu2, Activation::identity};
  return activations[fields.choice("activation", {"swiglu", "geglu", "gelu", "relu2", "identity"})];
}

GluForm to_glu(const Fields& fields) {
  GluForm form;
  if (!fields.has("glu")) return form;
  const Fields glu = fields.fields("glu");
  const auto number = [&](const char* field) { return static_cast<float>(glu.number(field)); };
  form.alpha = number("alpha");
  if (!glu.is_null("gateMax")) form.gate_max = number("gateMax");
  if (!glu.is_null("activationMax")) form.activation_max = number("activationMax");
  if (!glu.is_null("upMax")) form.up_max = number("upMax");
  if (glu.number("upOffset") != 0) form.up_offset = number("upOffset");
  return form;
}

void export_experts(Napi::Env env, Napi::Object exports) {
  ExpertHandle::define(env);
  BackendHandle::define(env);
  export_function(exports, "createCpuBackend", [](const Napi::CallbackInfo& info) {
    const auto threads = static_cast<int>(Fields(info[0], "").integer("threads", 1, threads_max));
    return BackendHandle::create(info.Env(), std::make_shared<Device>(create_cpu_backend(threads)));
  });
  export_function(exports, "createCudaBackend", [](const Napi::CallbackInfo& info) {
    const auto device = static_cast<int>(Fields(info[0], "").integer("device", 0, devices_max - 1));
    return BackendHandle::create(info.Env(), std::make_shared<Device>(cuda_module().create(device)));
  });
}

}  // namespace switchyard::addon
