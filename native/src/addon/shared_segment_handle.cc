#include "addon/shared_segment_handle.h"

#include <algorithm>
#include <string>

#include "addon/parallel.h"
#include "addon/slab_handle.h"
#include "kernels/convert.h"

namespace switchyard::addon {

namespace {

/** Elements that go through a buffer at a time: it stays in the second-level cache. */
constexpr size_t piece_elements = 32 * 1024;
constexpr size_t range_elements = 4 * piece_elements;

RowDtype to_dtype(const Napi::Value& value) {
  const std::string text = to_text(value, "dtype");
  if (text == "BF16") return RowDtype::bf16;
  if (text == "FP16") return RowDtype::f16;
  if (text == "FP32") return RowDtype::f32;
  throw_invalid("dtype", '"' + text + '"', "BF16, FP16, FP32");
}

/** Memory of a client's program: bytes that came in a message, or will leave in one, or part of a segment. */
struct ClientMemory {
  uint8_t* bytes = nullptr;
  std::shared_ptr<const SharedSegment> segment;
  uint64_t offset = 0;
  uint64_t length = 0;
};

ClientMemory to_client_memory(Operation& operation, const Napi::Value& value, const std::string& field) {
  if (value.IsTypedArray()) {
    const auto bytes = to_span<uint8_t>(value, field);
    operation.hold(value);
    return {bytes.data(), nullptr, 0, bytes.size()};
  }
  const Fields range(value, field);
  return {nullptr, SharedSegmentHandle::of(range.value("segment"), range.name("segment")),
          range.integer("byteOffset", 0, safe_integer_max), range.integer("byteLength", 0, safe_integer_max)};
}

/** How many elements of the dtype the memory has. */
uint64_t elements_of(const ClientMemory& memory, RowDtype dtype, const std::string& field) {
  if (memory.length % bytes_of(dtype) != 0) {
    throw_invalid(field + ".byteLength", memory.length, "whole elements of " + std::to_string(bytes_of(dtype)) + " bytes");
  }
  return memory.length / bytes_of(dtype);
}

uint16_t* elements_at(const SlabRef& slab, uint64_t offset, uint64_t elements) {
  if (offset % sizeof(uint16_t) == 0 && offset <= slab->size() && elements * sizeof(uint16_t) <= slab->size() - offset) {
    return reinterpret_cast<uint16_t*>(slab->data() + offset);
  }
  throw_invalid("byteOffset", offset,
                "even offsets that leave room for " + std::to_string(elements) + " BF16 elements in the " +
                    std::to_string(slab->size()) + " bytes of the slab");
}

/** Calls body(first, count, buffer) for pieces of the elements, over the pool; the buffer has room for their stored form. */
template <typename Body>
void for_pieces(uint64_t elements, const Body& body) {
  for_ranges(elements, range_elements, [&](size_t first, size_t count) {
    std::vector<std::byte> buffer(std::min(count, piece_elements) * sizeof(float));
    for (const size_t end = first + count; first < end; first += piece_elements) {
      body(first, std::min(piece_elements, end - first), buffer.data());
    }
  });
}

void narrow(const ClientMemory& from, RowDtype dtype, uint64_t elements, uint16_t* to) {
  const size_t stored = bytes_of(dtype);
  if (!from.segment) {
    const auto* bytes = reinterpret_cast<const std::byte*>(from.bytes);
    for_ranges(elements, range_elements,
               [&](size_t first, size_t count) { narrow_rows(bytes + first * stored, dtype, count, to + first); });
    return;
  }
  for_pieces(elements, [&](size_t first, size_t count, std::byte* buffer) {
    std::byte* const read = dtype == RowDtype::bf16 ? reinterpret_cast<std::byte*>(to + first) : buffer;
    from.segment->read(from.offset + first * stored, count * stored, read);
    if (read == buffer) narrow_rows(buffer, dtype, count, to + first);
  });
}

void widen(const uint16_t* from, RowDtype dtype, uint64_t elements, const ClientMemory& to) {
  const size_t stored = bytes_of(dtype);
  if (!to.segment) {
    auto* const bytes = reinterpret_cast<std::byte*>(to.bytes);
    for_ranges(elements, range_elements,
               [&](size_t first, size_t count) { widen_rows(from + first, count, dtype, bytes + first * stored); });
    return;
  }
  for_pieces(elements, [&](size_t first, size_t count, std::byte* buffer) {
    if (dtype != RowDtype::bf16) widen_rows(from + first, count, dtype, buffer);
    const std::byte* const written = dtype == RowDtype::bf16 ? reinterpret_cast<const std::byte*>(from + first) : buffer;
    to.segment->write(to.offset + first * stored, count * stored, written);
  });
}

void prepare_narrow(const Napi::CallbackInfo& info, Operation& operation) {
  const ClientMemory source = to_client_memory(operation, info[0], "source");
  const RowDtype dtype = to_dtype(info[1]);
  const uint64_t elements = elements_of(source, dtype, "source");
  const SlabRef target = SlabHandle::of(info[2], "target");
  uint16_t* const to = elements_at(target, to_integer(info[3], "byteOffset", 0, safe_integer_max), elements);
  operation.brief = is_brief(elements);
  operation.run = [=, held = target] { narrow(source, dtype, elements, to); };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

void prepare_widen(const Napi::CallbackInfo& info, Operation& operation) {
  const SlabRef source = SlabHandle::of(info[0], "source");
  const RowDtype dtype = to_dtype(info[2]);
  const ClientMemory target = to_client_memory(operation, info[3], "target");
  const uint64_t elements = elements_of(target, dtype, "target");
  const uint16_t* const from = elements_at(source, to_integer(info[1], "byteOffset", 0, safe_integer_max), elements);
  operation.brief = is_brief(elements);
  operation.run = [=, held = source] { widen(from, dtype, elements, target); };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

/** readSegment fills the bytes from the segment, writeSegment writes them there. */
void prepare_copy(const Napi::CallbackInfo& info, Operation& operation, bool reads) {
  const std::shared_ptr<const SharedSegment> segment = SharedSegmentHandle::of(info[0], "segment");
  const uint64_t offset = to_integer(info[1], "byteOffset", 0, safe_integer_max);
  const auto bytes = to_span<uint8_t>(info[2], "bytes");
  operation.hold(info[2]);
  operation.brief = is_brief(bytes.size() / sizeof(uint16_t));
  operation.run = [=] {
    auto* const memory = reinterpret_cast<std::byte*>(bytes.data());
    if (reads) segment->read(offset, bytes.size(), memory);
    else segment->write(offset, bytes.size(), memory);
  };
  operation.result = [](Napi::Env env) { return env.Undefined(); };
}

Napi::Value open_segment(const Napi::CallbackInfo& info) {
  return SharedSegmentHandle::create(
      info.Env(), SharedSegment::open(to_text(info[0], "shared_memory_key"), to_integer(info[1], "offset", 0, safe_integer_max),
                                      to_integer(info[2], "byte_size", 1, safe_integer_max)));
}

}  // namespace

std::vector<SharedSegmentHandle::PropertyDescriptor> SharedSegmentHandle::properties() {
  return {
      InstanceAccessor<&SharedSegmentHandle::byte_length>("byteLength"),
      InstanceAccessor<&SharedSegmentHandle::is_unlinked>("unlinked"),
      InstanceMethod("release", &SharedSegmentHandle::release),
  };
}

Napi::Value SharedSegmentHandle::byte_length(const Napi::CallbackInfo& info) {
  return guard(info, "byteLength", [&] { return Napi::Number::New(info.Env(), static_cast<double>(native()->size())); });
}

Napi::Value SharedSegmentHandle::is_unlinked(const Napi::CallbackInfo& info) {
  return guard(info, "unlinked", [&] { return Napi::Boolean::New(info.Env(), native()->unlinked()); });
}

void export_client_rows(Napi::Env env, Napi::Object exports) {
  SharedSegmentHandle::define(env);
  export_function(exports, "openSharedSegment", open_segment);
  export_operation(exports, "narrowRows", prepare_narrow);
  export_operation(exports, "widenRows", prepare_widen);
  const auto copies = [](bool reads) {
    return [=](const Napi::CallbackInfo& info, Operation& operation) { prepare_copy(info, operation, reads); };
  };
  export_operation(exports, "readSegment", copies(true));
  export_operation(exports, "writeSegment", copies(false));
}

}  // namespace switchyard::addon
