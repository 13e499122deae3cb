// The CUDA backend on one device beside bare copies and bare products.
//
//   gpu_bench [--device N] [--json FILE] [--timeline FILE.svg] [--trial]
//   gpu_bench [--device N] --serve ACTIVATION HIDDEN FFN EXPERTS ROWS
//   gpu_bench [--device N] --describe
//
// Every figure is written to the JSON file after each of its runs: what ends the program early leaves what was known.
// --trial takes small shapes and few rows: it shows that everything runs, and measures nothing.
//
// The second form is the peer of cluster/gpu-seed in `npm run bench`: it says "ready" when it has loaded, and answers every
// line of input, a number of seconds, with the rows per second of that many experts with so many resident rows each.
//
// The third form says in words what the device is, and fails with the reason if there is none.
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

/** What is measured. Of a run of 0.1 to 1 s on a large device. */
struct Sizes {
  int runs = 5;
  size_t hidden = 4096;
  size_t call_rows = 1024;
  /** A large expert, one so small that copies are the limit, and many of which each has few rows. */
  size_t large = 16384, small = 256, grouped = 1536;
  size_t experts = 32;
  size_t warm_calls = 64, stream_calls = 512, link_calls = 1024;
  int copies = 16, grouped_turns = 20;
};

Sizes trial_sizes() {
  return {.runs = 2, .hidden = 32, .call_rows = 64, .large = 64, .small = 8, .grouped = 16, .experts = 4,
          .warm_calls = 2, .stream_calls = 24, .link_calls = 24, .copies = 2, .grouped_turns = 2};
}

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

ExpertSource random_expert(Activation activation, size_t ffn, size_t hidden) {
  ExpertSource source{.activation = activation, .gate = std::nullopt, .up = random_matrix(ffn, hidden), .down = random_matrix(hidden, ffn)};
  if (activation == Activation::swiglu) source.gate = random_matrix(ffn, hidden);
  return source;
}

/** Rows in and out of pinned slabs. */
struct Rows {
  Rows(SlabArena& arena, size_t count, size_t hidden)
      : count(count), bytes(count * hidden * 2), in(arena.allocate(bytes)), out(arena.allocate(bytes)), indices(count) {
    std::iota(indices.begin(), indices.end(), 0);
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (size_t i = 0; i < count * hidden; ++i) reinterpret_cast<uint16_t*>(in->data())[i] = float_to_bf16(uniform(random));
  }
  ExpertInput input(size_t first, size_t rows) const {
    return {.rows = reinterpret_cast<const uint16_t*>(in->data()), .row_count = count, .indices = std::span(indices).subspan(first, rows),
            .output = reinterpret_cast<uint16_t*>(out->data()), .output_row_count = count, .output_row = first, .input_weights = nullptr};
  }
  size_t count, bytes;
  SlabRef in, out;
  std::vector<uint32_t> indices;
};

/** Rows per second of `calls` calls, with as many under way as the backend asks for. */
double stream_rows(ExpertBackend& backend, const Expert& expert, const Rows& rows, size_t calls, size_t call_rows) {
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
    backend.submit(expert, {rows.input(call % slots * call_rows, call_rows)}, [&](const ComputeTime&, std::exception_ptr error) {
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
    check(cudaMemcpyAsync(rows_.as<void>(), values.data(), values.size() * 2, cudaMemcpyHostToDevice, stream_), "to copy rows in");
    size_t row = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      works_.push_back({.expert = experts[i], .row_count = counts[i], .rows = rows_.as<uint16_t>() + row * stride,
                        .intermediate = intermediate_.as<uint16_t>() + row * shape_.intermediate(), .output = output_.as<uint16_t>() + row * stride});
      row += counts[i];
    }
    stream_.wait();
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
  const size_t bytes = rows.bytes;
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

/** The figures so far, kept in a file that is whole at any time. */
class Report {
 public:
  /** Without a path the figures are only printed. */
  Report(std::string path, const Description& found, int device) : path_(std::move(path)), found_(found), device_(found.devices.at(static_cast<size_t>(device))) {}

  /** Takes the place of a figure of the same name. */
  void keep(const Result& result) {
    std::erase_if(results_, [&](const Result& other) { return other.id == result.id; });
    results_.push_back(result);
    if (!path_.empty()) write();
  }
  /** As keep, and prints it. */
  void finish(const Result& result) {
    keep(result);
    std::cout << result.id << ' ' << median(result.values) << ' ' << result.unit;
    if (!result.references.empty()) std::cout << ", " << median(ratios(result)) << " of " << result.reference_name;
    std::cout << std::endl;
  }

 private:
  static std::vector<double> ratios(const Result& result) {
    std::vector<double> values;
    for (size_t run = 0; run < result.references.size(); ++run) values.push_back(result.values[run] / result.references[run]);
    return values;
  }

  void write() const {
    const std::string unfinished = path_ + ".unfinished";
    std::FILE* const file = std::fopen(unfinished.c_str(), "w");
    if (file == nullptr) throw std::runtime_error(unfinished + " cannot be written");
    std::fprintf(file, "{\n  \"machine\": { \"gpu\": \"%s\", \"capability\": \"%s\", \"cuda\": \"%s\", \"driver\": \"%s\" },\n  \"results\": [", device_.name.c_str(),
                 device_.capability.c_str(), found_.runtime.c_str(), found_.driver.c_str());
    for (size_t i = 0; i < results_.size(); ++i) write(file, results_[i], i == 0 ? "" : ",");
    std::fprintf(file, "\n  ]\n}\n");
    if (std::fclose(file) != 0 || std::rename(unfinished.c_str(), path_.c_str()) != 0) throw std::runtime_error(path_ + " cannot be written");
  }

  static void write(std::FILE* file, const Result& result, const char* separator) {
    std::fprintf(file, "%s\n    { \"id\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"", separator, result.id.c_str(), median(result.values), result.unit.c_str());
    const bool compared = !result.references.empty();
    if (compared) {
      std::fprintf(file, ", \"reference\": %.6g, \"referenceName\": \"%s\", \"ratio\": %.4f", median(result.references), result.reference_name.c_str(), median(ratios(result)));
    }
    std::fprintf(file, ", \"runs\": [");
    for (size_t run = 0; run < result.values.size(); ++run) {
      std::fprintf(file, "%s{ \"value\": %.6g", run == 0 ? "" : ", ", result.values[run]);
      if (compared) std::fprintf(file, ", \"reference\": %.6g", result.references[run]);
      std::fprintf(file, " }");
    }
    std::fprintf(file, "] }");
  }

  std::string path_;
  Description found_;
  DeviceDescription device_;
  std::vector<Result> results_;
};

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

void measure_large(ExpertBackend& backend, const Sizes& sizes, const Rows& rows, Report& report, std::vector<BatchTimes>& batches, const std::string& timeline) {
  const auto large = backend.load(random_expert(Activation::gelu, sizes.large, sizes.hidden));
  Bare resident({static_cast<const CudaExpert*>(large.get())}, {2 * sizes.call_rows});
  const auto turns = static_cast<int>(sizes.stream_calls / 2);
  stream_rows(backend, *large, rows, sizes.warm_calls, sizes.call_rows);
  Result stream{"gpu/stream-16384", "rows/s", "the same products, rows resident", {}, {}};
  Result bare{"gpu/bare-gelu", "rows/s", "", {}, {}};
  for (int i = 0; i < sizes.runs; ++i) {
    // As many rows each: a device that works longer runs hotter, at a lower clock.
    stream.references.push_back(resident.products_per_second(turns));
    bare.values.push_back(resident.rows_per_second(turns));
    batches.clear();
    stream.values.push_back(stream_rows(backend, *large, rows, sizes.stream_calls, sizes.call_rows));
    report.keep(stream);
    report.keep(bare);
  }
  report.finish(stream);
  report.finish(bare);
  write_timeline(timeline, batches);
}

void measure_link(ExpertBackend& backend, const Sizes& sizes, const Rows& rows, Report& report) {
  const auto small = backend.load(random_expert(Activation::gelu, sizes.small, sizes.hidden));
  stream_rows(backend, *small, rows, sizes.warm_calls, sizes.call_rows);
  Result link{"gpu/link", "bytes/s", "pinned memcpy, both ways at once", {}, {}};
  for (int i = 0; i < sizes.runs; ++i) {
    link.references.push_back(copy_both_ways(rows, sizes.copies));
    link.values.push_back(stream_rows(backend, *small, rows, sizes.link_calls, sizes.call_rows) * static_cast<double>(sizes.hidden * 2 * 2));
    report.keep(link);
  }
  report.finish(link);
}

void measure_grouped(ExpertBackend& backend, const Sizes& sizes, Report& report) {
  const Experts experts(backend, sizes.experts, Activation::swiglu, sizes.grouped, sizes.hidden);
  std::vector<size_t> counts;
  // The row counts of bench/peers/torch_gpu.py.
  for (size_t i = 0; i < experts.pointers.size(); ++i) counts.push_back(64 + i * 37 % 32 * 12);
  Bare grouped(experts.pointers, counts);
  Result bare{"gpu/bare-grouped", "rows/s", "", {}, {}};
  for (int i = 0; i < sizes.runs; ++i) {
    bare.values.push_back(grouped.rows_per_second(sizes.grouped_turns));
    report.keep(bare);
  }
  report.finish(bare);
}

int run(int device, const Sizes& sizes, const std::string& json, const std::string& timeline) {
  std::vector<BatchTimes> batches;
  const auto backend = create_backend(device, [&](const BatchTimes& times) { batches.push_back(times); });
  Report report(json, describe_devices(), device);
  SlabArena arena(size_t{4} << 30);
  arena.set_listener(backend->memory_listener());
  {
    const Rows rows(arena, 16 * sizes.call_rows, sizes.hidden);
    measure_large(*backend, sizes, rows, report, batches, timeline);
    measure_link(*backend, sizes, rows, report);
  }
  measure_grouped(*backend, sizes, report);
  return 0;
}

int describe(int device) {
  const Description found = describe_devices();
  if (!found.problem.empty()) throw std::runtime_error(found.problem);
  const DeviceDescription& one = found.devices.at(static_cast<size_t>(device));
  std::cout << one.name << ", compute capability " << one.capability << ", " << one.memory_bytes << " bytes, CUDA " << found.runtime << ", driver for CUDA "
            << found.driver << std::endl;
  return 0;
}

}  // namespace
}  // namespace switchyard::cuda

int main(int count, char** arguments) {
  using switchyard::Activation;
  const auto usage = [] {
    std::fprintf(stderr,
                 "usage: gpu_bench [--device N] [--json FILE] [--timeline FILE.svg] [--trial]\n"
                 "       gpu_bench [--device N] --serve swiglu|gelu HIDDEN FFN EXPERTS ROWS\n"
                 "       gpu_bench [--device N] --describe\n");
    return 2;
  };
  int device = 0;
  bool describe = false;
  switchyard::cuda::Sizes sizes;
  std::string json, timeline = "gpu-timeline.svg";
  std::vector<std::string> shape;
  for (int i = 1; i < count;) {
    const std::string flag = arguments[i++];
    const int values = flag == "--serve" ? 5 : flag == "--trial" || flag == "--describe" ? 0 : 1;
    if (count - i < values) return usage();
    if (flag == "--device") device = std::atoi(arguments[i]);
    else if (flag == "--json") json = arguments[i];
    else if (flag == "--timeline") timeline = arguments[i];
    else if (flag == "--trial") sizes = switchyard::cuda::trial_sizes();
    else if (flag == "--describe") describe = true;
    else if (flag == "--serve") shape.assign(arguments + i, arguments + i + values);
    else return usage();
    i += values;
  }
  try {
    if (describe) return switchyard::cuda::describe(device);
    if (shape.empty()) return switchyard::cuda::run(device, sizes, json, timeline);
    const auto size = [&](size_t index) { return static_cast<size_t>(std::max(1l, std::atol(shape[index].c_str()))); };
    const Activation activation = shape[0] == "swiglu" ? Activation::swiglu : Activation::gelu;
    return switchyard::cuda::serve(device, activation, size(1), size(2), size(3), size(4));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
