#include "addon/machine.h"

#include <cpuid.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <ranges>
#include <string>
#include <thread>
#include <vector>

#include "addon/arguments.h"
#include "addon/cuda.h"
#include "addon/process.h"
#include "addon/ucx.h"
#include "experts/cpu/kernels.h"
#include "experts/cpu/memory.h"
#include "kernels/fma_peak.h"

namespace switchyard::addon {

namespace {

constexpr uint64_t threads_max = 1024;
constexpr size_t memcpy_runs = 5;

std::string processor_name() {
  std::array<unsigned, 12> registers{};
  for (unsigned part = 0; part < 3; ++part) {
    unsigned* out = registers.data() + 4 * part;
    if (!__get_cpuid(0x80000002u + part, out, out + 1, out + 2, out + 3)) return "unknown";
  }
  std::string name(reinterpret_cast<const char*>(registers.data()), sizeof registers);
  name.resize(std::strlen(name.c_str()));
  name.erase(0, name.find_first_not_of(' '));
  name.erase(name.find_last_not_of(' ') + 1);
  return name.empty() ? "unknown" : name;
}

/** What experts can be computed with here, as SWITCHYARD_CPU_ISA spells it, and what other kernels use besides. */
std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
  for (const cpu::Kernels* kernels : std::views::reverse(cpu::all_kernels())) {
    if (kernels->supported()) found.emplace_back(kernels->name);
  }
  if (__builtin_cpu_supports("fma")) found.push_back("fma");
  if (__builtin_cpu_supports("avx512f")) found.push_back("avx512f");
  return found;
}

Napi::Value describe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<std::string> sets = instruction_sets();
  auto isa = Napi::Array::New(env, sets.size());
  for (uint32_t i = 0; i < sets.size(); ++i) isa.Set(i, sets[i]);
  auto result = Napi::Object::New(env);
  result.Set("cpu", processor_name());
  result.Set("isa", isa);
  result.Set("ucx", describe_ucx(env));
  result.Set("cuda", describe_cuda(env));
  result.Set("cores", std::thread::hardware_concurrency());
  return result;
}

Napi::Value configure_process(const Napi::CallbackInfo& info) {
  const Fields options(info[0], "");
  const Napi::Value setting = options.value("slabSetting");
  configure(options.integer("slabBytesMax", 1, safe_integer_max),
            setting.IsUndefined() ? std::string() : to_text(setting, "slabSetting"),
            static_cast<int>(options.integer("threads", 1, threads_max)));
  return info.Env().Undefined();
}

Napi::Value huge_page_share(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), cpu::huge_page_share()); }

/** Bytes per second of one thread, the median of several runs over warm memory. */
double measure_memcpy(size_t bytes) {
  const SlabRef source = arena().allocate(bytes);
  const SlabRef target = arena().allocate(bytes);
  std::memset(source->data(), 1, bytes);
  std::memset(target->data(), 2, bytes);
  std::array<double, memcpy_runs> rates;
  for (double& rate : rates) {
    const auto start = std::chrono::steady_clock::now();
    std::memcpy(target->data(), source->data(), bytes);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    rate = static_cast<double>(bytes) / std::max(seconds.count(), 1e-9);
  }
  std::sort(rates.begin(), rates.end());
  return rates[memcpy_runs / 2];
}

/** The promise's value is what `measure` returns on a thread of the pool. */
void promise_rate(Operation& operation, std::function<double()> measure) {
  const auto rate = std::make_shared<double>();
  operation.run = [rate, measure = std::move(measure)] { *rate = measure(); };
  operation.result = [rate](Napi::Env env) { return Napi::Number::New(env, *rate); };
}

void prepare_measure_memcpy(const Napi::CallbackInfo& info, Operation& operation) {
  const uint64_t bytes = to_integer(info[0], "bytes", 1, safe_integer_max);
  promise_rate(operation, [bytes] { return measure_memcpy(bytes); });
}

void prepare_measure_fma(const Napi::CallbackInfo&, Operation& operation) {
  promise_rate(operation, measure_fma_peak);
}

}  // namespace

void require_processor(Napi::Env env) {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return;
  throw Napi::Error::New(env, "switchyard needs an x86-64 processor with AVX2 and FMA; this one (" +
                                  processor_name() + ") lacks them");
}

void export_machine(Napi::Object exports) {
  export_function(exports, "configure", configure_process);
  export_function(exports, "describe", describe);
  export_function(exports, "hugePageShare", huge_page_share);
  export_operation(exports, "measureMemcpy", prepare_measure_memcpy);
  export_operation(exports, "measureFma", prepare_measure_fma);
}

}  // namespace switchyard::addon
