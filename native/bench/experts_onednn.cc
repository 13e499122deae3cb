#include "experts_onednn.h"

#ifdef SWITCHYARD_ONEDNN

#include <dlfcn.h>

#include <dnnl.hpp>
#include <vector>

namespace switchyard::bench {
namespace {

using dnnl::memory;
using Dimension = memory::dim;

constexpr auto bf16 = memory::data_type::bf16;

/** Builds with OpenMP take threads from the caller's setting; the comparison is on one core. */
void use_one_thread() {
  if (void* set = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(set)(1);
}

class Ffn final : public OnednnFfn {
 public:
  Ffn(Activation activation, Dimension hidden, Dimension ffn, Dimension rows, size_t experts, const uint16_t* gate, const uint16_t* up,
      const uint16_t* down)
      : swiglu_(activation == Activation::swiglu),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        x_({{rows, hidden}, bf16, memory::format_tag::ab}, engine_, nullptr),
        gated_({{rows, ffn}, bf16, memory::format_tag::ab}, engine_),
        h_({{rows, ffn}, bf16, memory::format_tag::ab}, engine_),
        y_({{rows, hidden}, bf16, memory::format_tag::ab}, engine_, nullptr) {
    dnnl::post_ops gate_operations, up_operations;
    gate_operations.append_eltwise(1.0f, dnnl::algorithm::eltwise_swish, 1.0f, 0.0f);
    if (swiglu_) {
      up_operations.append_binary(dnnl::algorithm::binary_mul, gated_.get_desc());
    } else {
      up_operations.append_eltwise(1.0f, dnnl::algorithm::eltwise_gelu_erf, 0.0f, 0.0f);
    }
    const auto product = [&](const memory& from, const memory& to, const dnnl::post_ops& operations) {
      dnnl::primitive_attr attributes;
      attributes.set_post_ops(operations);
      const Dimension inner = from.get_desc().dims()[1], outer = to.get_desc().dims()[1];
      const memory::desc any({inner, outer}, bf16, memory::format_tag::any);
      return dnnl::matmul::primitive_desc({from.get_desc(), any, to.get_desc()}, attributes, engine_);
    };
    const auto gate_product = product(x_, gated_, gate_operations);
    const auto up_product = product(x_, h_, up_operations);
    const auto down_product = product(h_, y_, {});
    gate_ = dnnl::matmul(gate_product);
    up_ = dnnl::matmul(up_product);
    down_ = dnnl::matmul(down_product);
    for (size_t expert = 0; expert < experts; ++expert) {
      if (swiglu_) gate_weights_.push_back(reorder(gate, hidden, ffn, gate_product.weights_desc()));
      up_weights_.push_back(reorder(up, hidden, ffn, up_product.weights_desc()));
      down_weights_.push_back(reorder(down, ffn, hidden, down_product.weights_desc()));
    }
    stream_.wait();
  }

  void forward(size_t expert, const uint16_t* rows, uint16_t* output) override {
    x_.set_data_handle(const_cast<uint16_t*>(rows));
    y_.set_data_handle(output);
    if (swiglu_) {
      gate_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, gate_weights_[expert]}, {DNNL_ARG_DST, gated_}});
      up_.execute(stream_, {{DNNL_ARG_SRC, x_},
                            {DNNL_ARG_WEIGHTS, up_weights_[expert]},
                            {DNNL_ARG_DST, h_},
                            {DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, gated_}});
    } else {
      up_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, up_weights_[expert]}, {DNNL_ARG_DST, h_}});
    }
    down_.execute(stream_, {{DNNL_ARG_SRC, h_}, {DNNL_ARG_WEIGHTS, down_weights_[expert]}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

 private:
  /** Weights stand as [outputs, inputs]; a product wants [inputs, outputs] in its own order. */
  memory reorder(const uint16_t* weights, Dimension inputs, Dimension outputs, const memory::desc& wanted) {
    memory plain({{inputs, outputs}, bf16, memory::format_tag::ba}, engine_, const_cast<uint16_t*>(weights));
    memory ordered(wanted, engine_);
    dnnl::reorder(plain, ordered).execute(stream_, plain, ordered);
    stream_.wait();
    return ordered;
  }

  bool swiglu_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  memory x_, gated_, h_, y_;
  dnnl::matmul gate_, up_, down_;
  std::vector<memory> gate_weights_, up_weights_, down_weights_;
};

}  // namespace

std::unique_ptr<OnednnFfn> make_onednn_ffn(Activation activation, size_t hidden, size_t ffn, size_t rows, size_t experts,
                                           const uint16_t* gate, const uint16_t* up, const uint16_t* down) {
  use_one_thread();
  try {
    const auto dimension = [](size_t value) { return static_cast<Dimension>(value); };
    return std::make_unique<Ffn>(activation, dimension(hidden), dimension(ffn), dimension(rows), experts, gate, up, down);
  } catch (const dnnl::error&) {
    return nullptr;
  }
}

}  // namespace switchyard::bench

#else

namespace switchyard::bench {

std::unique_ptr<OnednnFfn> make_onednn_ffn(Activation, size_t, size_t, size_t, size_t, const uint16_t*, const uint16_t*,
                                           const uint16_t*) {
  return nullptr;
}

}  // namespace switchyard::bench

#endif
