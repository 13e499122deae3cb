#pragma once

#include <memory>
#include <string>

#include "ucx/fabric.h"

namespace switchyard::ucx {

/** What switchyard_ucx.so offers. */
struct Module {
  /** The version of UCX, for example "1.13.1". */
  std::string (*version)();
  /** As can_encrypt of ucx/tls.h. */
  bool (*can_encrypt)();
  /** As the constructor of Fabric. */
  std::unique_ptr<Fabric> (*open)(SlabArena& arena, Reach reach);
};

}  // namespace switchyard::ucx
