#pragma once

#include <napi.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>

#include "addon/operation.h"
#include "runtime/error.h"

namespace switchyard::addon {

/** Bounds of one operation. Slots (row * topK + position) must fit in 32 bits. */
constexpr uint64_t rows_max = uint64_t{1} << 24;
constexpr uint64_t top_k_max = 255;
constexpr uint64_t hidden_max = uint64_t{1} << 20;
static_assert(rows_max * top_k_max <= std::numeric_limits<uint32_t>::max());
constexpr uint64_t safe_integer_max = (uint64_t{1} << 53) - 1;

/** Short text of a value for error messages. */
std::string show(const Napi::Value& value);

uint64_t to_integer(const Napi::Value& value, const std::string& field, uint64_t min, uint64_t max);
double to_number(const Napi::Value& value, const std::string& field);
std::string to_text(const Napi::Value& value, const std::string& field);

/** Reads the fields of an object; every error names the field by its path, the value and what is allowed. */
class Fields {
 public:
  /** `path` is empty for the only argument of a call. */
  Fields(const Napi::Value& value, std::string path);

  std::string name(const char* field) const { return path_.empty() ? field : path_ + "." + field; }
  Napi::Value value(const char* field) const { return object_.Get(field); }
  bool is_null(const char* field) const { return value(field).IsNull(); }
  /** Whether an optional field is given, and not as null. */
  bool has(const char* field) const { return !value(field).IsUndefined() && !is_null(field); }
  Fields fields(const char* field) const { return Fields(value(field), name(field)); }

  uint64_t integer(const char* field, uint64_t min, uint64_t max) const {
    return to_integer(value(field), name(field), min, max);
  }
  /** Finite. */
  double number(const char* field) const { return to_number(value(field), name(field)); }
  bool boolean(const char* field) const;
  /** The index of the field's text in `allowed`. */
  size_t choice(const char* field, std::initializer_list<const char*> allowed) const;

 private:
  Napi::Object object_;
  std::string path_;
};

template <typename Element>
struct ElementType;
template <>
struct ElementType<uint8_t> {
  static constexpr napi_typedarray_type type = napi_uint8_array;
  static constexpr const char* name = "a Uint8Array";
};
template <>
struct ElementType<uint32_t> {
  static constexpr napi_typedarray_type type = napi_uint32_array;
  static constexpr const char* name = "a Uint32Array";
};
template <>
struct ElementType<float> {
  static constexpr napi_typedarray_type type = napi_float32_array;
  static constexpr const char* name = "a Float32Array";
};
template <>
struct ElementType<double> {
  static constexpr napi_typedarray_type type = napi_float64_array;
  static constexpr const char* name = "a Float64Array";
};

/** The memory of a typed array, valid as long as the array lives. */
template <typename Element>
std::span<Element> to_span(const Napi::Value& value, const std::string& field) {
  using Type = ElementType<Element>;
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != Type::type) {
    throw_invalid(field, show(value), Type::name);
  }
  auto array = value.As<Napi::TypedArrayOf<Element>>();
  return {array.Data(), array.ElementLength()};
}

/** As to_span, held by the operation. */
template <typename Element>
std::span<const Element> held_span(Operation& operation, const Napi::Value& value, const std::string& field) {
  const auto span = to_span<Element>(value, field);
  operation.hold(value);
  return span;
}

/** As held_span, of a known length. */
template <typename Element>
std::span<const Element> held_span(Operation& operation, const Napi::Value& value, const std::string& field,
                                   size_t length) {
  const auto span = held_span<Element>(operation, value, field);
  if (span.size() != length) throw_invalid(field + ".length", span.size(), std::to_string(length));
  return span;
}

/** As held_span of a known length; null gives an empty span. */
template <typename Element>
std::span<const Element> held_span_or_null(Operation& operation, const Napi::Value& value, const std::string& field,
                                           size_t length) {
  if (value.IsNull()) return {};
  return held_span<Element>(operation, value, field, length);
}

/** A copy on the JS heap, for results. */
template <typename Element>
Napi::Value to_array(Napi::Env env, std::span<const Element> values) {
  auto array = Napi::TypedArrayOf<Element>::New(env, values.size(), ElementType<Element>::type);
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

}  // namespace switchyard::addon
