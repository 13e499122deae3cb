// The CUDA backend on one device beside bare copies and bare products.
//
//   gpu_bench [--device N] [--json FILE] [--timeline FILE.svg]
//   gpu_bench [--device N] --serve ACTIVATION HIDDEN FFN EXPERTS ROWS
//
// The second form is the peer of cluster/gpu-seed in `npm run bench`: it says "ready" when it has loaded, and answers every
// line of input, a number of seconds, with the rows per second of that many experts with so many resident rows each.
//
// gpu/link           bytes/s of both copy engines at once while the backend streams ÷ plain pinned memcpys, both ways at once
// gpu/stream-16384   rows/s from pinned to pinned host memory, 4096×16384 GELU ÷ the same products with resident rows
// gpu/bare-gelu, gpu/bare-grouped   rows/s of resident expert FFNs; bench/peers/torch_gpu.py gives the peer's figure
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "experts/cuda/cuda_backend.h"
#include "kernels/bf16.h"
#include "memory/slab.h"

namespace switchyard::cuda {
namespace {

constexpr int runs = 5;
constexpr size_t hidden = 4096;
constexpr size_t call_rows = 1024;

struct Result {
  std::string id, unit, reference_name;
  std::vector<double> values, references;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/** Random BF16 matrix, the same few rows again and again: speed depends on the values' randomness, not on their number. */
MatrixSource random_matrix(size_t rows, size_t columns) {
  const auto read = [columns](size_t first, size_t count, uint16_t* out) {
    std::mt19937 random(static_cast<unsigned>(first));
    const float scale = 1.0f / std::sqrt(static_cast<float>(columns));
    std::uniform_real_distribution<float> uniform(-scale, scale);
    const size_t made = std::min(count * columns, size_t{1} << 20);
    for (size_t i = 0; i < made; ++i) out[i] = float_to_bf16(uniform(random));
    for (size_t i = made; i < count * columns; ++i) out[i] = out[i - made];
  };
  return {rows, columns, read};
}

ExpertSource random_expert(Activation activation, size_t ffn, size_t hidden = switchyard::cuda::hidden) {
  ExpertSource source{.activation = activation, .gate = std::nullopt, .up = random_matrix(ffn, hidden), .down = random_matrix(hidden, ffn)};
  if (activation == Activation::swiglu) source.gate = random_matrix(ffn, hidden);
  return source;
}

/** Rows in and out of pinned slabs. */
struct Rows {
  Rows(SlabArena& arena, size_t count) : count(count), in(arena.allocate(count * hidden * 2)), out(arena.allocate(count * hidden * 2)), indices(count) {
    std::iota(indices.begin(), indices.end(), 0);
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t i = 0; i < count * hidden; ++i) reinterpret_cast<uint16_t*>(in->data())[i] = float_to_bf16(uniform(random));
  }
  ExpertInput input(size_t first, size_t rows) const {
    return {.rows = reinterpret_cast<const uint16_t*>(in->data()), .row_count = count, .indices = std::span(indices).subspan(first, rows),
            .output = reinterpret_cast<uint16_t*>(out->data()), .output_row_count = count, .output_row = first, .input_weights = nullptr};
  }
  size_t count;
  SlabRef in, out;
  std::vector<uint32_t> indices;
};

/** Rows per second of `calls` calls, with as many under way as the backend asks for. */
double stream_rows(ExpertBackend& backend, const std::vector<const Expert*>& experts, const Rows& rows, size_t calls) {
  std::mutex mutex;
  std::condition_variable ended;
  size_t under_way = 0;
  std::exception_ptr failure;
  const size_t slots = rows.count / call_rows;
  const double begin = seconds_now();
  for (size_t call = 0; call < calls; ++call) {
    {
      std::unique_lock lock(mutex);
      ended.wait(lock, [&] { return under_way < slots; });
      ++under_way;
    }
    backend.submit(*experts[call % experts.size()], {rows.input(call % slots * call_rows, call_rows)}, [&](const ComputeTime&, std::exception_ptr error) {
      const std::lock_guard lock(mutex);
      if (error) failure = error;
      --under_way;
      ended.notify_one();
    });
  }
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return under_way == 0; });
  if (failure) std::rethrow_exception(failure);
  return static_cast<double>(calls * call_rows) / (seconds_now() - begin);
}

/** Resident rows of some experts, ragged or not, and what computes them. */
class Bare {
 public:
  Bare(std::vector<const CudaExpert*> experts, std::vector<size_t> counts)
      : total_(std::accumulate(counts.begin(), counts.end(), size_t{0})), shape_(experts.front()->shape()),
        rows_(total_ * shape_.hidden_padded() * 2, "rows"), intermediate_(total_ * shape_.intermediate() * 2, "rows"),
        output_(total_ * shape_.hidden_padded() * 2, "rows") {
    const size_t stride = shape_.hidden_padded();
    std::vector<uint16_t> values(total_ * stride);
    std::mt19937 random(2);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (uint16_t& value : values) value = float_to_bf16(uniform(random));
    check(cudaMemcpy(rows_.as<void>(), values.data(), values.size() * 2, cudaMemcpyHostToDevice), "to copy rows in");
    size_t row = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      works_.push_back({.expert = experts[i], .row_count = counts[i], .rows = rows_.as<uint16_t>() + row * stride,
                        .intermediate = intermediate_.as<uint16_t>() + row * shape_.intermediate(), .output = output_.as<uint16_t>() + row * stride});
      row += counts[i];
    }
    check(cudaDeviceSynchronize(), "while it copied");
  }

  double rows_per_second(int turns) {
    ffn_.run(works_, stream_);
    begin_.record(stream_);
    for (int turn = 0; turn < turns; ++turn) ffn_.run(works_, stream_);
    end_.record(stream_);
    end_.wait();
    return static_cast<double>(total_) * turns / end_.seconds_since(begin_);
  }

  /** The two products without the activation between them. */
  double products_per_second(int turns) {
    const DeviceMemory workspace(workspace_bytes, "a workspace");
    const auto once = [&] {
      for (const SegmentWork& work : works_) {
        work.expert->products->first.run(work.expert->first(), work.rows, work.intermediate, work.row_count, workspace.as<void>(), stream_);
        work.expert->products->second.run(work.expert->second(), work.intermediate, work.output, work.row_count, workspace.as<void>(), stream_);
      }
    };
    once();
    begin_.record(stream_);
    for (int turn = 0; turn < turns; ++turn) once();
    end_.record(stream_);
    end_.wait();
    return static_cast<double>(total_) * turns / end_.seconds_since(begin_);
  }

 private:
  size_t total_;
  Shape shape_;
  DeviceMemory rows_, intermediate_, output_;
  std::vector<SegmentWork> works_;
  Ffn ffn_;
  Stream stream_;
  Event begin_, end_;
};

/** Bytes per second, in and out together, of plain copies of pinned memory in both directions at once. */
double copy_both_ways(const Rows& rows, int turns) {
  const size_t bytes = rows.count * hidden * 2;
  const DeviceMemory in(bytes, "rows"), out(bytes, "rows");
  const Stream first, second;
  const double begin = seconds_now();
  for (int turn = 0; turn < turns; ++turn) {
    check(cudaMemcpyAsync(in.as<void>(), rows.in->data(), bytes, cudaMemcpyHostToDevice, first), "to copy in");
    check(cudaMemcpyAsync(rows.out->data(), out.as<void>(), bytes, cudaMemcpyDeviceToHost, second), "to copy out");
  }
  first.wait();
  second.wait();
  return 2.0 * static_cast<double>(bytes) * turns / (seconds_now() - begin);
}

/** One line a stream, one bar a batch: the overlap as the events saw it. */
void write_timeline(const std::string& path, std::vector<BatchTimes> batches) {
  if (batches.size() > 24) batches.erase(batches.begin(), batches.end() - 24);
  const double begin = batches.front().copy_in.begin;
  const double end = batches.back().copy_out.begin + batches.back().copy_out.seconds;
  const double scale = 1100 / (end - begin);
  std::ofstream svg(path);
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1240\" height=\"170\" font-family=\"sans-serif\" font-size=\"12\">\n";
  const auto line = [&](const char* name, int y, BatchTimes::Interval BatchTimes::*part) {
    svg << "<text x=\"10\" y=\"" << y + 20 << "\">" << name << "</text>\n";
    for (size_t i = 0; i < batches.size(); ++i) {
      const auto& interval = batches[i].*part;
      svg << "<rect x=\"" << 90 + (interval.begin - begin) * scale << "\" y=\"" << y << "\" width=\"" << std::max(1.0, interval.seconds * scale)
          << "\" height=\"30\" stroke=\"white\" stroke-width=\"0.5\" fill=\"hsl(" << i * 67 % 360 << ",60%,50%)\"/>\n";
    }
  };
  line("copy in", 20, &BatchTimes::copy_in);
  line("compute", 60, &BatchTimes::compute);
  line("copy out", 100, &BatchTimes::copy_out);
  svg << "<text x=\"90\" y=\"155\">" << (end - begin) * 1e3 << " ms, " << batches.size() << " batches; one colour is one batch</text>\n</svg>\n";
}

void write_json(std::FILE* file, const std::string& device, const std::vector<Result>& results) {
  std::fprintf(file, "{\n  \"machine\": { \"gpu\": \"%s\" },\n  \"results\": [", device.c_str());
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& result = results[i];
    std::vector<double> ratios;
    for (size_t run = 0; run < result.references.size(); ++run) ratios.push_back(result.values[run] / result.references[run]);
    std::fprintf(file, "%s\n    { \"id\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", i == 0 ? "" : ",", result.id.c_str(), median(result.values), result.unit.c_str());
    if (!ratios.empty()) {
      std::fprintf(file, ", \"reference\": %.6g, \"referenceName\": \"%s\", \"ratio\": %.4f", median(result.references), result.reference_name.c_str(), median(ratios));
    }
    std::fprintf(file, ", \"runs\": [");
    for (size_t run = 0; run < result.values.size(); ++run) {
      std::fprintf(file, "%s{ \"value\": %.6g", run == 0 ? "" : ", ", result.values[run]);
      if (!ratios.empty()) std::fprintf(file, ", \"reference\": %.6g", result.references[run]);
      std::fprintf(file, " }");
    }
    std::fprintf(file, "] }");
  }
  std::fprintf(file, "\n  ]\n}\n");
}

/** Experts of one shape, and what the backend needs to have of them. */
struct Experts {
  Experts(ExpertBackend& backend, size_t count, Activation activation, size_t ffn, size_t hidden) {
    for (size_t i = 0; i < count; ++i) {
      owned.push_back(backend.load(random_expert(activation, ffn, hidden)));
      pointers.push_back(static_cast<const CudaExpert*>(owned.back().get()));
    }
  }
  std::vector<std::unique_ptr<Expert>> owned;
  std::vector<const CudaExpert*> pointers;
};

int serve(int device, Activation activation, size_t hidden, size_t ffn, size_t experts_count, size_t rows) {
  const auto backend = create_backend(device);
  const Experts experts(*backend, experts_count, activation, ffn, hidden);
  Bare bare(experts.pointers, std::vector<size_t>(experts_count, rows));
  constexpr int trial_turns = 10;
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const double turn_seconds = static_cast<double>(experts_count * rows) / bare.rows_per_second(trial_turns);
    const int turns = static_cast<int>(std::clamp(std::atof(line.c_str()) / turn_seconds, 1.0, 1e6));
    std::cout << bare.rows_per_second(turns) << std::endl;
  }
  return 0;
}

int run(int device, const std::string& json, const std::string& timeline) {
  std::vector<BatchTimes> batches;
  const auto backend = create_backend(device, [&](const BatchTimes& times) { batches.push_back(times); });
  SlabArena arena(size_t{4} << 30);
  arena.set_listener(backend->memory_listener());
  std::vector<Result> results;
  {
    const Rows rows(arena, 16 * call_rows);
    const auto large = backend->load(random_expert(Activation::gelu, 16384));
    const auto& expert = static_cast<const CudaExpert&>(*large);
    Bare resident({&expert}, {2 * call_rows});
    stream_rows(*backend, {large.get()}, rows, 64);
    Result stream{"gpu/stream-16384", "rows/s", "the same products, rows resident", {}, {}};
    Result bare{"gpu/bare-gelu", "rows/s", "", {}, {}};
    for (int i = 0; i < runs; ++i) {
      // As many rows each: a device that works longer runs hotter, at a lower clock.
      stream.references.push_back(resident.products_per_second(256));
      bare.values.push_back(resident.rows_per_second(256));
      batches.clear();
      stream.values.push_back(stream_rows(*backend, {large.get()}, rows, 512));
    }
    write_timeline(timeline, batches);

    // A small expert, so that the copies are the limit.
    const auto small = backend->load(random_expert(Activation::gelu, 256));
    stream_rows(*backend, {small.get()}, rows, 64);
    Result link{"gpu/link", "bytes/s", "pinned memcpy, both ways at once", {}, {}};
    for (int i = 0; i < runs; ++i) {
      link.references.push_back(copy_both_ways(rows, 16));
      link.values.push_back(stream_rows(*backend, {small.get()}, rows, 1024) * hidden * 2 * 2);
    }
    results.insert(results.end(), {stream, bare, link});
  }
  const Experts experts(*backend, 32, Activation::swiglu, 1536, hidden);
  std::vector<size_t> counts;
  // The row counts of bench/peers/torch_gpu.py.
  for (size_t i = 0; i < experts.pointers.size(); ++i) counts.push_back(64 + i * 37 % 32 * 12);
  Bare grouped(experts.pointers, counts);
  Result bare{"gpu/bare-grouped", "rows/s", "", {}, {}};
  for (int i = 0; i < runs; ++i) bare.values.push_back(grouped.rows_per_second(20));
  results.push_back(bare);

  std::FILE* const file = json.empty() ? stdout : std::fopen(json.c_str(), "w");
  if (file == nullptr) throw std::runtime_error(json + " cannot be written");
  write_json(file, backend->description().detail, results);
  if (!json.empty()) std::fclose(file);
  return 0;
}

}  // namespace
}  // namespace switchyard::cuda

int main(int count, char** arguments) {
  using switchyard::Activation;
  const auto usage = [] {
    std::fprintf(stderr,
                 "usage: gpu_bench [--device N] [--json FILE] [--timeline FILE.svg]\n"
                 "       gpu_bench [--device N] --serve swiglu|gelu HIDDEN FFN EXPERTS ROWS\n");
    return 2;
  };
  int device = 0;
  std::string json, timeline = "gpu-timeline.svg";
  std::vector<std::string> shape;
  for (int i = 1; i < count;) {
    const std::string flag = arguments[i++];
    const int values = flag == "--serve" ? 5 : 1;
    if (count - i < values) return usage();
    if (flag == "--device") device = std::atoi(arguments[i]);
    else if (flag == "--json") json = arguments[i];
    else if (flag == "--timeline") timeline = arguments[i];
    else if (flag == "--serve") shape.assign(arguments + i, arguments + i + values);
    else return usage();
    i += values;
  }
  try {
    if (shape.empty()) return switchyard::cuda::run(device, json, timeline);
    const auto size = [&](size_t index) { return static_cast<size_t>(std::max(1l, std::atol(shape[index].c_str()))); };
    const Activation activation = shape[0] == "swiglu" ? Activation::swiglu : Activation::gelu;
    return switchyard::cuda::serve(device, activation, size(1), size(2), size(3), size(4));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
