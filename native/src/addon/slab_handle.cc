#include "addon/slab_handle.h"

#include "addon/process.h"

namespace switchyard::addon {

std::vector<SlabHandle::PropertyDescriptor> SlabHandle::properties() {
  return {
      InstanceAccessor<&SlabHandle::byte_length>("byteLength"),
      InstanceAccessor<&SlabHandle::capacity>("capacity"),
      InstanceAccessor<&SlabHandle::is_released>("released"),
      InstanceMethod<&SlabHandle::share>("share"),
      InstanceMethod<&SlabHandle::view>("view"),
      InstanceMethod("release", &SlabHandle::release),
  };
}

SlabHandle::SlabHandle(const Napi::CallbackInfo& info)
    : Handle(info), byte_length_(static_cast<double>(native()->size())) {}

Napi::Value SlabHandle::byte_length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), byte_length_);
}

Napi::Value SlabHandle::capacity(const Napi::CallbackInfo& info) {
  return guard(info, "capacity", [&]() -> Napi::Value { return Napi::Number::New(info.Env(), static_cast<double>(native()->capacity())); });
}

Napi::Value SlabHandle::is_released(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), released());
}

Napi::Value SlabHandle::share(const Napi::CallbackInfo& info) {
  return guard(info, "share", [&]() -> Napi::Value { return create(info.Env(), SlabRef(native())); });
}

Napi::Value SlabHandle::view(const Napi::CallbackInfo& info) {
  return guard(info, "view", [&]() -> Napi::Value {
    // The buffer owns a reference of its own; its finaliser drops it and calls nothing else.
    auto* reference = new SlabRef(native());
    auto buffer = Napi::ArrayBuffer::New(
        info.Env(), (*reference)->data(), (*reference)->size(),
        [](Napi::Env, void*, SlabRef* held) { delete held; }, reference);
    return Napi::Uint8Array::New(info.Env(), buffer.ByteLength(), buffer, 0);
  });
}

SlabRef slab_of_rows(const Napi::Value& value, const std::string& field, uint64_t row_count, uint64_t hidden,
                     size_t element_bytes) {
  const SlabRef& slab = SlabHandle::of(value, field);
  const uint64_t needed = row_count * hidden * element_bytes;
  if (slab->size() < needed) {
    throw_invalid(field + ".byteLength", slab->size(),
                  std::to_string(needed) + " or more, for " + std::to_string(row_count) + " rows of " +
                      std::to_string(hidden) + " elements");
  }
  return slab;
}

SlabRef allocate_rows(uint64_t row_count, uint64_t hidden, size_t tail) {
  return arena().allocate(row_count * hidden * sizeof(uint16_t), tail);
}

void export_slabs(Napi::Env env, Napi::Object exports) {
  SlabHandle::define(env);
  export_function(exports, "allocateSlab", [](const Napi::CallbackInfo& info) {
    const uint64_t size = to_integer(info[0], "byteLength", 1, safe_integer_max);
    const uint64_t tail = info[1].IsUndefined() ? 0 : to_integer(info[1], "tailBytes", 0, safe_integer_max);
    return SlabHandle::create(info.Env(), arena().allocate(size, tail));
  });
  export_function(exports, "endView", [](const Napi::CallbackInfo& info) {
    to_span<uint8_t>(info[0], "view");
    info[0].As<Napi::Uint8Array>().ArrayBuffer().Detach();
    return info.Env().Undefined();
  });
  export_function(exports, "trimSlabs", [](const Napi::CallbackInfo& info) {
    arena().trim();
    return info.Env().Undefined();
  });
  export_function(exports, "arenaStats", [](const Napi::CallbackInfo& info) {
    const ArenaStats stats = arena().stats();
    auto result = Napi::Object::New(info.Env());
    result.Set("slabs", static_cast<double>(stats.slabs));
    result.Set("bytesInUse", static_cast<double>(stats.bytes_in_use));
    result.Set("bytesCached", static_cast<double>(stats.bytes_cached));
    result.Set("bytesLimit", static_cast<double>(stats.bytes_limit));
    return result;
  });
}

}  // namespace switchyard::addon
