// What one core can do at best, and the FFN by oneDNN, for `npm run bench -- experts`, which takes turns with it:
//   experts_peer ISA ACTIVATION HIDDEN FFN EXPERTS
// The first line of output is "ready", with " onednn" if it can compute. Then every line of input is answered:
//   registers, cached    operations per second of the instruction set
//   read                 bytes per second
//   onednn ROWS EXPERT   CPU seconds
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "experts_onednn.h"
#include "experts_peaks.h"

namespace switchyard::bench {
namespace {

/** Ordinary values of BF16 between -2^-5 and 2^-5. */
std::vector<uint16_t> small_values(size_t count) {
  std::vector<uint16_t> values(count);
  uint32_t state = 12345;
  for (uint16_t& value : values) {
    state = state * 1664525u + 1013904223u;
    const float number = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-36f;
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    value = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

/** More than any cache holds, in huge pages where the system gives them, as weights are. */
class ReadMemory {
 public:
  static constexpr size_t bytes = size_t{256} << 20;

  ReadMemory() : data_(static_cast<char*>(std::aligned_alloc(size_t{2} << 20, bytes))) {
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes);
  }
  ~ReadMemory() { std::free(data_); }
  ReadMemory(const ReadMemory&) = delete;
  ReadMemory& operator=(const ReadMemory&) = delete;

  const char* data() const { return data_; }

 private:
  char* data_;
};

class Peer {
 public:
  Peer(Isa isa, Activation activation, size_t hidden, size_t ffn, size_t experts)
      : isa_(isa),
        activation_(activation),
        hidden_(hidden),
        ffn_(ffn),
        experts_(experts),
        gate_(small_values(hidden * ffn)),
        up_(gate_),
        down_(gate_) {}

  bool has_onednn() { return prepare(1); }

  double answer(const std::string& question) {
    std::istringstream words(question);
    std::string what;
    words >> what;
    if (what == "registers") return register_flops(isa_);
    if (what == "cached") return cached_flops(isa_);
    if (what == "read") return read_bytes_per_second(memory_.data(), ReadMemory::bytes);
    size_t rows = 0, expert = 0;
    if (what != "onednn" || !(words >> rows >> expert) || expert >= experts_ || !prepare(rows)) {
      throw std::invalid_argument("not a question: " + question);
    }
    const double begin = seconds_now();
    onednn_->forward(expert, x_.data(), y_.data());
    return seconds_now() - begin;
  }

 private:
  /** oneDNN wants its weights in an order that depends on the number of rows. */
  bool prepare(size_t rows) {
    if (onednn_ && rows == rows_) return true;
    onednn_.reset();
    rows_ = rows;
    x_ = small_values(rows * hidden_);
    y_.resize(rows * hidden_);
    onednn_ = make_onednn_ffn(activation_, hidden_, ffn_, rows, experts_, gate_.data(), up_.data(), down_.data());
    return onednn_ != nullptr;
  }

  Isa isa_;
  Activation activation_;
  size_t hidden_, ffn_, experts_;
  std::vector<uint16_t> gate_, up_, down_;
  ReadMemory memory_;
  size_t rows_ = 0;
  std::vector<uint16_t> x_, y_;
  std::unique_ptr<OnednnFfn> onednn_;
};

Isa isa_of(const std::string& name) {
  if (name == "avx2") return Isa::avx2;
  if (name == "avx512-bf16") return Isa::avx512_bf16;
  if (name == "amx-bf16") return Isa::amx_bf16;
  throw std::invalid_argument("the instruction set is " + name + "; allowed: avx2, avx512-bf16, amx-bf16");
}

int run(int count, char** arguments) {
  if (count != 6) throw std::invalid_argument("usage: experts_peer ISA ACTIVATION HIDDEN FFN EXPERTS");
  const auto number = [&](int index) { return std::stoul(arguments[index]); };
  const Isa isa = isa_of(arguments[1]);
  prepare(isa);
  const Activation activation = std::string(arguments[2]) == "swiglu" ? Activation::swiglu : Activation::gelu;
  Peer peer(isa, activation, number(3), number(4), number(5));
  std::cout << (peer.has_onednn() ? "ready onednn" : "ready") << std::endl;
  for (std::string line; std::getline(std::cin, line);) std::cout << peer.answer(line) << std::endl;
  return 0;
}

}  // namespace
}  // namespace switchyard::bench

int main(int count, char** arguments) {
  try {
    return switchyard::bench::run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << "experts_peer: " << error.what() << "\n";
    return 2;
  }
}
