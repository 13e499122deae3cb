#pragma once

#include <vector>

#include "addon/handle.h"
#include "memory/slab.h"

namespace switchyard::addon {

/** `Slab` of native/index.ts. */
class SlabHandle : public Handle<SlabHandle, SlabRef> {
 public:
  static constexpr HandleKind kind = HandleKind::slab;
  static constexpr const char* name = "Slab";
  static constexpr napi_type_tag tag = {0x8d5f0c1e6b7a4f21, 0x9b1c3a5de2f04671};
  static std::vector<PropertyDescriptor> properties();

  explicit SlabHandle(const Napi::CallbackInfo& info);

 private:
  Napi::Value byte_length(const Napi::CallbackInfo& info);
  Napi::Value capacity(const Napi::CallbackInfo& info);
  Napi::Value is_released(const Napi::CallbackInfo& info);
  Napi::Value share(const Napi::CallbackInfo& info);
  Napi::Value view(const Napi::CallbackInfo& info);

  double byte_length_;
};

/** BF16 rows in a slab. Throws INVALID_ARGUMENT if [row_count, hidden] does not fit in it. */
SlabRef slab_of_rows(const Napi::Value& value, const std::string& field, uint64_t row_count, uint64_t hidden,
                     size_t element_bytes = sizeof(uint16_t));

inline uint16_t* rows_of(const SlabRef& slab) { return reinterpret_cast<uint16_t*>(slab->data()); }
inline float* floats_of(const SlabRef& slab) { return reinterpret_cast<float*>(slab->data()); }

/** A slab for [row_count, hidden] BF16 rows, with `tail` bytes of capacity behind them. */
SlabRef allocate_rows(uint64_t row_count, uint64_t hidden, size_t tail = 0);

/** The functions allocateSlab and arenaStats. */
void export_slabs(Napi::Env env, Napi::Object exports);

}  // namespace switchyard::addon
