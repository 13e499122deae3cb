#include "ucx/module.h"

/** The one function that switchyard_ucx.so exports: see ModuleFile. */
extern "C" __attribute__((visibility("default"))) const switchyard::ucx::Module* switchyard_ucx() {
  using namespace switchyard::ucx;
  static const Module module{
      .version = &Fabric::version,
      .can_encrypt = &can_encrypt,
      .open = [](switchyard::SlabArena& arena, Reach reach) { return std::make_unique<Fabric>(arena, reach); },
  };
  return &module;
}
