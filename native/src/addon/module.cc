#include <napi.h>

#include "addon/environment.h"
#include "addon/expert_handles.h"
#include "addon/gate_handle.h"
#include "addon/machine.h"
#include "addon/model_operations.h"
#include "addon/process_end.h"
#include "addon/reference_operation.h"
#include "addon/routed_handle.h"
#include "addon/routing_table_handle.h"
#include "addon/row_operations.h"
#include "addon/shared_segment_handle.h"
#include "addon/slab_handle.h"
#include "addon/ucx.h"

namespace switchyard::addon {

namespace {

/** Exports the members of `Addon` in native/index.ts, in its order. */
Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  require_processor(env);
  Environment::create(env);
  export_machine(exports);
  export_slabs(env, exports);
  export_model_operations(env, exports);
  export_gate(env, exports);
  export_routing_table(env, exports);
  export_routing(env, exports);
  export_row_operations(exports);
  export_client_rows(env, exports);
  export_experts(env, exports);
  export_reference(exports);
  export_ucx(env, exports);
  export_process_end(exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(switchyard, initialize)

}  // namespace switchyard::addon
