// The row kernels on one core beside memcpy on the same core. Every iteration takes another chunk of 8 MiB out of
// memory larger than the caches, and is followed by a memcpy of 8 MiB in the same state, so that load on the machine
// falls on both. `of_memcpy` is the ratio of bytes read and written per second; bytes are counted once where the
// algorithm needs them: 2 per byte for memcpy, and as each benchmark below says.
//
//   cmake -S native -B native/build-bench -DSWITCHYARD_BENCH=ON && cmake --build native/build-bench
//   native/build-bench/bench/kernels_bench --benchmark_repetitions=5 --benchmark_report_aggregates_only
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/bf16.h"
#include "kernels/combine.h"
#include "kernels/fma_peak.h"
#include "kernels/gate.h"
#include "kernels/norm.h"
#include "kernels/group.h"
#include "kernels/pack.h"
#include "kernels/route.h"
#include "kernels/scores.h"

namespace switchyard {
namespace {

constexpr std::size_t hidden = 4096;
constexpr std::size_t chunk_rows = 1024;
constexpr std::size_t chunk_values = chunk_rows * hidden;
constexpr std::size_t chunk_bytes = chunk_values * sizeof(std::uint16_t);
constexpr std::size_t chunks = 16;

/** Memory that begins with a page, as a slab does. */
template <typename T>
struct PageAllocator {
  using value_type = T;
  static constexpr std::align_val_t page{4096};
  T* allocate(std::size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), page)); }
  void deallocate(T* memory, std::size_t) { ::operator delete(memory, page); }
  friend bool operator==(PageAllocator, PageAllocator) = default;
};
using Rows = std::vector<std::uint16_t, PageAllocator<std::uint16_t>>;

struct Memory {
  Rows source = Rows(chunks * chunk_values);
  Rows target = Rows(chunks * chunk_values, 1);

  Memory() {
    std::mt19937_64 random(1);
    // Of magnitude 1/128 to 2, as tokens are: subnormals would slow float32 down.
    std::generate_n(source.begin(), chunk_values,
                    [&] { return static_cast<std::uint16_t>((random() & 0x83ffu) | 0x3c00u); });
    for (std::size_t i = chunk_values; i < source.size(); ++i) source[i] = source[i - chunk_values];
  }
};

Memory& memory() {
  static Memory memory;
  return memory;
}

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

/** Processor time of this thread: others that want the core do not count. */
double seconds_of(auto&& call) {
  const double start = thread_seconds();
  call();
  benchmark::ClobberMemory();
  return thread_seconds() - start;
}

/** `call(i)` works on chunk i of `chunk_count`, and reads and writes `bytes`. */
void compare_to_memcpy(benchmark::State& state, double bytes, std::size_t chunk_count, auto&& call) {
  std::size_t i = 0;
  double kernel_seconds = 0;
  double memcpy_seconds = 0;
  for (auto _ : state) {
    const double seconds = seconds_of([&] { call(i % chunk_count); });
    state.SetIterationTime(seconds);
    kernel_seconds += seconds;
    memcpy_seconds += seconds_of([&] {
      const std::size_t at = (i + chunks / 2) % chunks * chunk_values;
      std::memcpy(&memory().target[at], &memory().source[at], chunk_bytes);
    });
    ++i;
  }
  const auto count = static_cast<double>(state.iterations());
  state.counters["GB/s"] = bytes * count / kernel_seconds / 1e9;
  state.counters["of_memcpy"] = bytes / kernel_seconds / (2.0 * chunk_bytes / memcpy_seconds);
}

/** Bytes: rows read. `of_fma`: operations to the core's float32 peak. */
void gate(benchmark::State& state) {
  const auto experts = static_cast<std::size_t>(state.range(0));
  const auto hidden = static_cast<std::size_t>(state.range(2));
  const std::size_t chunk_rows = chunk_values / hidden;
  const RoutingSpec routing{.top_k = static_cast<std::uint32_t>(state.range(1)), .renormalise = true};
  std::vector<float> weight(experts * hidden);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = bf16_to_float(memory().source[i]);
  const Gate gate(weight.data(), experts, hidden, {}, {}, routing);
  std::vector<std::uint32_t> chosen(chunk_rows * routing.top_k);
  std::vector<float> weights(chosen.size());
  compare_to_memcpy(state, chunk_bytes, chunks, [&](std::size_t i) {
    gate.route(&memory().source[i * chunk_values], chunk_rows, {}, chosen.data(), weights.data());
  });
  const double flops = 2.0 * static_cast<double>(chunk_rows * hidden * experts);
  state.counters["GFLOP/s"] = flops * state.counters["GB/s"].value / chunk_bytes;
  state.counters["of_fma"] = state.counters["GFLOP/s"].value * 1e9 / measure_fma_peak();
  state.SetLabel(scores::kernels<scores::Bf16Pair>().front().name);
}
BENCHMARK(gate)->Args({8, 2, 4096})->Args({16, 2, 4096})->Args({64, 8, 4096})->Args({256, 8, 7168})->UseManualTime();

/** Norm and gate. Bytes: rows read, and written normalised. */
void route(benchmark::State& state) {
  const auto experts = static_cast<std::size_t>(state.range(0));
  const RoutingSpec routing{.top_k = static_cast<std::uint32_t>(state.range(1)), .renormalise = true};
  std::vector<float> weight(experts * hidden);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = bf16_to_float(memory().source[i]);
  const Gate gate(weight.data(), experts, hidden, {}, {}, routing);
  std::vector<std::uint32_t> chosen(chunk_rows * routing.top_k);
  std::vector<float> weights(chosen.size());
  compare_to_memcpy(state, 2.0 * chunk_bytes, chunks, [&](std::size_t i) {
    const RouteTask task{.rows = &memory().source[i * chunk_values],
                         .row_count = chunk_rows,
                         .hidden = hidden,
                         .norm_weight = memory().source.data(),
                         .epsilon = 1e-6f,
                         .normed = &memory().target[i * chunk_values],
                         .gate = &gate,
                         .bias = {},
                         .experts = chosen.data(),
                         .weights = weights.data()};
    route_rows(task, 0, chunk_rows);
  });
}
BENCHMARK(route)->Args({2, 1})->Args({16, 2})->Args({64, 8})->UseManualTime();

/** What a gate chooses for a chunk when every choice is equally likely. */
std::vector<std::uint32_t> random_experts(std::size_t top_k, std::size_t experts) {
  std::mt19937_64 random(2);
  std::vector<std::uint32_t> chosen;
  std::vector<std::uint32_t> all(experts);
  std::iota(all.begin(), all.end(), 0u);
  for (std::size_t t = 0; t < chunk_rows; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    chosen.insert(chosen.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(top_k));
  }
  return chosen;
}

/** Experts on workers, `copies` of each side by side. */
class Placed {
 public:
  Placed(std::uint32_t experts, std::uint32_t workers, std::uint32_t copies) : workers_(workers), offsets_(1) {
    for (std::uint32_t e = 0; e < experts; ++e) {
      for (std::uint32_t c = 0; c < copies; ++c) holders_.push_back((e + c * (e / workers + 1)) % workers);
      std::sort(holders_.end() - copies, holders_.end());
      holders_.erase(std::unique(holders_.begin() + offsets_.back(), holders_.end()), holders_.end());
      offsets_.push_back(static_cast<std::uint32_t>(holders_.size()));
    }
  }

  GroupTargets targets() const { return {.copies = {offsets_, holders_}, .workers = workers_, .pace = {}}; }

 private:
  std::uint32_t workers_;
  std::vector<std::uint32_t> offsets_;
  std::vector<std::uint32_t> holders_;
};

/**
 * Grouping alone: copies of each expert, experts, workers and rows. What several copies add to the time of one is what the split costs.
 */
void group(benchmark::State& state) {
  const auto copies = static_cast<std::uint32_t>(state.range(0));
  const auto experts = static_cast<std::uint32_t>(state.range(1));
  const auto rows = static_cast<std::size_t>(state.range(3));
  const Placed placed(experts, static_cast<std::uint32_t>(state.range(2)), copies);
  // The lower of two is drawn, so that low numbers are hot.
  std::mt19937_64 random(7);
  std::vector<std::uint32_t> chosen;
  for (std::size_t t = 0; t < rows; ++t) {
    const std::size_t first = chosen.size();
    while (chosen.size() < first + 8) {
      const auto expert = static_cast<std::uint32_t>(std::min(random() % experts, random() % experts));
      if (std::find(chosen.begin() + static_cast<std::ptrdiff_t>(first), chosen.end(), expert) == chosen.end()) chosen.push_back(expert);
    }
  }
  for (auto _ : state) benchmark::DoNotOptimize(plan_groups({chosen, {}, 8}, placed.targets()));
}
BENCHMARK(group)->ArgsProduct({{1, 2, 3}, {64}, {8}, {1, 4096}})->ArgsProduct({{1, 2, 3}, {256}, {64}, {1, 1024, 8192}})
    ->Unit(benchmark::kMicrosecond);

/** Plan and copy for 4 workers. Bytes: every packed row read and written. */
void pack(benchmark::State& state) {
  const auto top_k = static_cast<std::size_t>(state.range(0));
  const std::vector<std::uint32_t> experts = random_experts(top_k, 16);
  const std::vector<float> weights(experts.size(), 0.5f);
  const Placed placed(16, 4, 1);
  std::size_t rows = 0;
  for (const GroupPlan& plan : plan_groups({experts, weights, top_k}, placed.targets())) rows += plan.tokens.size();
  compare_to_memcpy(state, 2.0 * static_cast<double>(rows * hidden * sizeof(std::uint16_t)), chunks / 4,
                    [&](std::size_t i) {
                      std::uint16_t* output = &memory().target[i * 4 * chunk_values];
                      for (const GroupPlan& plan : plan_groups({experts, weights, top_k}, placed.targets())) {
                        pack_rows(&memory().source[i * 4 * chunk_values], hidden * sizeof(std::uint16_t), plan.tokens, 0, plan.tokens.size(),
                                  output);
                        output += plan.tokens.size() * hidden;
                      }
                    });
}
BENCHMARK(pack)->Arg(2)->Arg(8)->UseManualTime();

/**
 * Plan and sum of a chunk whose results lie in the order of 4 workers' segments, with residual.
 * Bytes: top_k result rows and the residual read, the output written, per token.
 */
void combine_exact(benchmark::State& state) {
  const auto top_k = static_cast<std::size_t>(state.range(0));
  const std::vector<std::uint32_t> experts = random_experts(top_k, 16);
  const std::vector<float> weights(experts.size(), 0.5f);
  const Placed placed(16, 4, 1);
  const std::vector<GroupPlan> plans = plan_groups({experts, weights, top_k}, placed.targets());
  const double bytes = static_cast<double>(top_k + 2) * chunk_bytes;
  compare_to_memcpy(state, bytes, chunks - top_k - 1, [&](std::size_t i) {
    std::vector<CombinePart> parts;
    const std::uint16_t* rows = &memory().source[(i + 1) * chunk_values];
    for (const GroupPlan& plan : plans) {
      parts.push_back({rows, plan.slots});
      rows += plan.slots.size() * hidden;
    }
    const CombinePlan plan = plan_combine_exact(parts, chunk_rows, top_k, hidden, weights);
    combine_rows(plan, 0, chunk_rows, hidden, &memory().source[i * chunk_values], &memory().target[i * chunk_values]);
  });
}
BENCHMARK(combine_exact)->Arg(2)->Arg(8)->UseManualTime();

/** Bytes: rows read and written. */
void normalize(benchmark::State& state) {
  compare_to_memcpy(state, 2.0 * chunk_bytes, chunks, [&](std::size_t i) {
    const std::size_t at = i * chunk_values;
    normalize_rows(&memory().source[at], chunk_rows, hidden, memory().target.data(), 1e-6f, &memory().target[at]);
  });
}
BENCHMARK(normalize)->UseManualTime();

}  // namespace
}  // namespace switchyard
