#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "experts/backend.h"

namespace switchyard::bench {

/** The same FFN by oneDNN on the calling thread, weights in the order it asks for: the peer to compare with. */
class OnednnFfn {
 public:
  virtual ~OnednnFfn() = default;
  /** `rows` and `output` are [rows, hidden] BF16; the number of rows is fixed when it is made. */
  virtual void forward(size_t expert, const uint16_t* rows, uint16_t* output) = 0;
};

/** Null if oneDNN is not built in or has no such product on this machine. */
std::unique_ptr<OnednnFfn> make_onednn_ffn(Activation activation, size_t hidden, size_t ffn, size_t rows, size_t experts,
                                           const uint16_t* gate, const uint16_t* up, const uint16_t* down);

}  // namespace switchyard::bench
