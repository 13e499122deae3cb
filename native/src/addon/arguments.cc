#include "addon/arguments.h"

#include <cmath>

namespace switchyard::addon {

namespace {

constexpr size_t shown_text_max = 80;

}  // namespace

std::string show(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return value.As<Napi::Boolean>() ? "true" : "false";
    case napi_number:
      return value.ToString().Utf8Value();
    case napi_string: {
      const std::string text = value.As<Napi::String>().Utf8Value();
      return "\"" + text.substr(0, shown_text_max) + (text.size() > shown_text_max ? "…\"" : "\"");
    }
    case napi_object:
      if (value.IsTypedArray()) return "a typed array of another type";
      return value.IsArray() ? "an array" : "an object";
    default:
      return "a value of another type";
  }
}

uint64_t to_integer(const Napi::Value& value, const std::string& field, uint64_t min, uint64_t max) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  const bool valid = number >= static_cast<double>(min) && number <= static_cast<double>(max);
  if (!valid || number != std::floor(number)) {
    throw_invalid(field, show(value), "integers " + std::to_string(min) + " to " + std::to_string(max));
  }
  return static_cast<uint64_t>(number);
}

double to_number(const Napi::Value& value, const std::string& field) {
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  if (!std::isfinite(number)) throw_invalid(field, show(value), "finite numbers");
  return number;
}

std::string to_text(const Napi::Value& value, const std::string& field) {
  if (!value.IsString()) throw_invalid(field, show(value), "a string");
  return value.As<Napi::String>().Utf8Value();
}

Fields::Fields(const Napi::Value& value, std::string path) : path_(std::move(path)) {
  if (!value.IsObject()) throw_invalid(path_.empty() ? "options" : path_, show(value), "an object");
  object_ = value.As<Napi::Object>();
}

bool Fields::boolean(const char* field) const {
  const Napi::Value found = value(field);
  if (!found.IsBoolean()) throw_invalid(name(field), show(found), "true, false");
  return found.As<Napi::Boolean>();
}

size_t Fields::choice(const char* field, std::initializer_list<const char*> allowed) const {
  const Napi::Value found = value(field);
  std::string names;
  size_t index = 0;
  for (const char* candidate : allowed) {
    if (found.IsString() && found.As<Napi::String>().Utf8Value() == candidate) return index;
    names += (index++ == 0 ? "" : ", ") + std::string(candidate);
  }
  throw_invalid(name(field), show(found), names);
}

}  // namespace switchyard::addon
