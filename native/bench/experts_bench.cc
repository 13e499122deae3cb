// Expert FFNs on one core beside what the core can do at best, and beside oneDNN and PyTorch, all in one run:
//   experts_bench [--json FILE] [--shape PART OF A NAME] [--rows ROWS] [--seconds PER CASE]
//                [--peers yes|no] [--torch PYTHON WITH TORCH]
// SWITCHYARD_CPU_ISA chooses the instruction set. Measurements take turns, so that whatever slows the
// machine slows all of them. A ratio is the median over the turns of the ratio within the turn, a rate
// the median of its turns, in time that the thread ran.
#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "experts/backend.h"
#include "experts/cpu/memory.h"
#include "experts_onednn.h"
#include "experts_peaks.h"
#include "experts_process.h"
#include "kernels/bf16.h"

namespace switchyard::bench {
namespace {

struct Shape {
  size_t hidden, ffn;
  Activation activation;

  size_t matrices() const { return activation == Activation::swiglu ? 3 : 2; }
  double weight_bytes() const { return static_cast<double>(matrices() * hidden * ffn) * 2; }
  double flops(size_t rows) const { return weight_bytes() * static_cast<double>(rows); }
  std::string name() const {
    return std::to_string(hidden) + "x" + std::to_string(ffn) + (activation == Activation::swiglu ? "-swiglu" : "-gelu");
  }
};

struct Options {
  std::string json, shape, torch;
  size_t rows = 0;
  double seconds = 3;
  bool peers = true;
};

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/** One case: flops, or bytes of weights where reading them is the bound, per second; one entry per turn. */
struct Result {
  std::string id;
  bool by_bytes = false;
  std::vector<double> ours, onednn, torch, registers, cached, read;

  /** The better of the two peaks, or reading, in each turn. */
  std::vector<double> peaks() const {
    if (by_bytes) return read;
    std::vector<double> better;
    for (size_t i = 0; i < registers.size(); ++i) better.push_back(std::max(registers[i], cached[i]));
    return better;
  }
  double ratio_to(const std::vector<double>& reference) const {
    std::vector<double> ratios;
    for (size_t i = 0; i < reference.size(); ++i) ratios.push_back(ours[i] / reference[i]);
    return median(ratios);
  }
};

std::vector<uint16_t> random_values(size_t count, float scale) {
  std::mt19937 random(5);
  std::vector<uint16_t> values(count);
  for (uint16_t& value : values) value = float_to_bf16((static_cast<float>(random()) * 0x1p-31f - 1.0f) * scale);
  return values;
}

/** Reading speed is that of memory, so weights of small experts are spread over more than any cache holds. */
constexpr double working_set_bytes = 256e6;

class Case {
 public:
  Case(const Shape& shape, bool avx512) : shape_(shape), avx512_(avx512), backend_(create_cpu_backend(1)) {
    const float scale = 1.0f / std::max<float>(1.0f, static_cast<float>(shape.hidden) / 64.0f);
    gate_ = random_values(shape.hidden * shape.ffn, scale);
    up_ = random_values(shape.hidden * shape.ffn, scale);
    down_ = random_values(shape.hidden * shape.ffn, scale);
    const auto matrix = [](const std::vector<uint16_t>& values, size_t rows, size_t columns) {
      return MatrixSource{rows, columns, [&values, columns](size_t first, size_t count, uint16_t* out) {
                            std::copy_n(values.begin() + first * columns, count * columns, out);
                          }};
    };
    ExpertSource source{shape.activation, std::nullopt, matrix(up_, shape.ffn, shape.hidden), matrix(down_, shape.hidden, shape.ffn)};
    if (shape.activation == Activation::swiglu) source.gate = matrix(gate_, shape.ffn, shape.hidden);
    const size_t count = std::max<size_t>(1, static_cast<size_t>(working_set_bytes / shape.weight_bytes()));
    for (size_t i = 0; i < count; ++i) experts_.push_back(backend_->load(source));
  }

  Result measure(size_t rows, const Options& options, const cpu::PackedMemory& memory) {
    Result result;
    result.id = "experts/" + shape_.name() + "-" + std::to_string(rows);
    result.by_bytes = rows == 1;
    const std::vector<uint16_t> x = random_values(rows * shape_.hidden, 1.0f);
    std::vector<uint16_t> y(rows * shape_.hidden);
    std::vector<uint32_t> indices(rows);
    for (size_t i = 0; i < rows; ++i) indices[i] = static_cast<uint32_t>(i);
    const ExpertInput input{x.data(), rows, indices, y.data(), rows, 0, nullptr};
    std::unique_ptr<OnednnFfn> peer;
    if (options.peers) peer = make_onednn_ffn(shape_.activation, shape_.hidden, shape_.ffn, rows, experts_.size(), gate_.data(), up_.data(), down_.data());
    const auto torch = start_torch(options.torch, rows);
    const double work = result.by_bytes ? shape_.weight_bytes() : shape_.flops(rows);
    // Once through everything before it counts: the first reading of fresh memory is slower.
    for (size_t expert = 0; expert < experts_.size(); ++expert) {
      backend_->forward(*experts_[expert], {&input, 1});
      if (peer) peer->forward(expert, x.data(), y.data());
      if (torch) ask(*torch, expert);
    }
    const double begin = seconds_now();
    // With few rows once through all experts at least; as often as the time allows.
    const size_t turns_min = rows < 128 ? experts_.size() + 2 : 5;
    for (size_t turn = 0; turn < turns_min || seconds_now() - begin < options.seconds; ++turn) {
      const size_t expert = turn % experts_.size();
      const double registers = register_flops(avx512_), cached = cached_flops(avx512_);
      result.ours.push_back(rate(work, [&] { backend_->forward(*experts_[expert], {&input, 1}); }));
      // The peaks before and after, because the clock drifts within a turn.
      result.registers.push_back((registers + register_flops(avx512_)) / 2);
      result.cached.push_back((cached + cached_flops(avx512_)) / 2);
      if (peer) result.onednn.push_back(rate(work, [&] { peer->forward(expert, x.data(), y.data()); }));
      if (torch) result.torch.push_back(work / ask(*torch, expert));
      if (result.by_bytes) result.read.push_back(read_bytes_per_second(memory.as<char>(), memory.bytes()));
    }
    return result;
  }

 private:
  /** PyTorch in a process of the given interpreter; null without one, or if it has no torch. */
  std::unique_ptr<PeerProcess> start_torch(const std::string& interpreter, size_t rows) const {
    if (interpreter.empty()) return nullptr;
    const std::string script = SWITCHYARD_BENCH_DIRECTORY "/experts_torch.py";
    auto peer = std::make_unique<PeerProcess>(std::vector<std::string>{
        interpreter, script, shape_.activation == Activation::swiglu ? "swiglu" : "gelu", std::to_string(shape_.hidden),
        std::to_string(shape_.ffn), std::to_string(rows), std::to_string(experts_.size())});
    if (peer->read().empty()) {
      std::fprintf(stderr, "%s does not run %s: PyTorch is not measured\n", interpreter.c_str(), script.c_str());
      return nullptr;
    }
    return peer;
  }

  /** Seconds of one forward pass of a peer process. */
  static double ask(PeerProcess& peer, size_t expert) {
    peer.write(std::to_string(expert));
    const std::string answer = peer.read();
    if (answer.empty()) throw std::runtime_error("the peer's process ended");
    return std::stod(answer);
  }

  template <typename Action>
  static double rate(double work, const Action& action) {
    const double begin = seconds_now();
    action();
    return work / (seconds_now() - begin);
  }

  Shape shape_;
  bool avx512_;
  std::unique_ptr<ExpertBackend> backend_;
  std::vector<uint16_t> gate_, up_, down_;
  std::vector<std::unique_ptr<Expert>> experts_;
};

void print(const Result& r) {
  const double unit = r.by_bytes ? 1e9 : 1e12;
  std::printf("%-30s %7.3f %-7s = %5.3f of %-9s %7.3f | oneDNN %7.3f (x %4.2f), torch %7.3f (x %4.2f) | best %7.3f of %7.3f | %zu turns\n",
              r.id.c_str(), median(r.ours) / unit, r.by_bytes ? "GB/s" : "TFLOP/s", r.ratio_to(r.peaks()),
              r.by_bytes ? "reading" : "the peak", median(r.peaks()) / unit, median(r.onednn) / unit, r.ratio_to(r.onednn),
              median(r.torch) / unit, r.ratio_to(r.torch), std::ranges::max(r.ours) / unit, std::ranges::max(r.peaks()) / unit,
              r.ours.size());
  std::fflush(stdout);
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

std::string runs_json(const Result& r, double unit) {
  std::ostringstream out;
  const std::vector<double> peaks = r.peaks();
  for (size_t i = 0; i < peaks.size(); ++i) {
    out << (i ? "," : "") << "{\"value\":" << r.ours[i] / unit << ",\"reference\":" << peaks[i] / unit << "}";
  }
  return out.str();
}

/** The form of `npm run bench`: medians, every turn, and the peers' medians. */
std::string to_json(const std::vector<Result>& results, const std::string& isa) {
  std::ostringstream out;
  out << "{\"machine\":{\"cpu\":\"" << cpu_model() << "\",\"isa\":[\"" << isa << "\"],\"threads\":1},\"results\":[";
  for (size_t i = 0; i < results.size(); ++i) {
    const Result& r = results[i];
    const double unit = r.by_bytes ? 1e9 : 1e12;
    out << (i ? ",\n" : "\n") << "{\"id\":\"" << r.id << "\",\"value\":" << median(r.ours) / unit << ",\"unit\":\""
        << (r.by_bytes ? "GB/s" : "TFLOP/s") << "\",\"reference\":" << median(r.peaks()) / unit << ",\"referenceName\":\""
        << (r.by_bytes ? "read" : "peak") << "\",\"ratio\":" << r.ratio_to(r.peaks()) << ",\"runs\":[" << runs_json(r, unit)
        << "],\"details\":{\"registerPeak\":" << median(r.registers) / 1e12 << ",\"cachedPeak\":" << median(r.cached) / 1e12 << "},\"peers\":{";
    if (!r.onednn.empty()) out << "\"onednn\":" << median(r.onednn) / unit;
    if (!r.torch.empty()) out << (r.onednn.empty() ? "" : ",") << "\"torch\":" << median(r.torch) / unit;
    out << "}}";
  }
  out << "\n]}\n";
  return out.str();
}

bool parse(int count, char** arguments, Options& options) {
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string flag = arguments[i];
    if (flag == "--json") options.json = arguments[i + 1];
    else if (flag == "--shape") options.shape = arguments[i + 1];
    else if (flag == "--rows") options.rows = std::strtoul(arguments[i + 1], nullptr, 10);
    else if (flag == "--seconds") options.seconds = std::strtod(arguments[i + 1], nullptr);
    else if (flag == "--torch") options.torch = arguments[i + 1];
    else if (flag == "--peers") options.peers = std::strcmp(arguments[i + 1], "no") != 0;
    else return false;
  }
  return count % 2 == 1;
}

int run(int count, char** arguments) {
  Options options;
  if (!parse(count, arguments, options)) {
    std::fprintf(stderr, "usage: experts_bench [--json FILE] [--shape NAME] [--rows ROWS] [--seconds SECONDS] [--peers yes|no] [--torch PYTHON]\n");
    return 2;
  }
  // One core from beginning to end: moving would mix two cores' caches.
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(sched_getcpu(), &cores);
  sched_setaffinity(0, sizeof cores, &cores);

  const std::string isa = create_cpu_backend(1)->description().detail;
  cpu::PackedMemory memory(size_t{256} << 20, "memory to read");
  std::memset(memory.as<char>(), 1, memory.bytes());
  const Shape shapes[] = {{4096, 16384, Activation::gelu}, {4096, 1536, Activation::swiglu}, {1024, 2816, Activation::swiglu}};
  std::vector<Result> results;
  for (const Shape& shape : shapes) {
    if (shape.name().find(options.shape) == std::string::npos) continue;
    Case one(shape, isa != "avx2");
    for (const size_t rows : {1, 16, 128, 512, 2048}) {
      if (options.rows != 0 && options.rows != rows) continue;
      results.push_back(one.measure(rows, options, memory));
      print(results.back());
    }
  }
  if (!options.json.empty()) std::ofstream(options.json) << to_json(results, isa);
  return 0;
}

}  // namespace
}  // namespace switchyard::bench

int main(int count, char** arguments) { return switchyard::bench::run(count, arguments); }
