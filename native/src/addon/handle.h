#pragma once

#include <napi.h>

#include <string>
#include <utility>

#include "addon/arguments.h"
#include "addon/environment.h"

namespace switchyard::addon {

/**
 * An object that JavaScript holds for a native value. `Native` is a counted pointer: giving up the handle drops one
 * reference, and operations in flight keep theirs. Each class has a type tag, because any object could be passed
 * where a handle is expected. `Self` has: kind, name, tag and properties().
 */
template <typename Self, typename Native>
class Handle : public Napi::ObjectWrap<Self> {
 public:
  explicit Handle(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Self>(info) {
    // Scripts can reach the constructor through an instance, but nothing is being made then.
    auto* const made = static_cast<Native*>(std::exchange(Environment::of(info.Env()).making, nullptr));
    if (!made) throw Napi::TypeError::New(info.Env(), std::string(Self::name) + " is made by the addon alone");
    native_ = std::move(*made);
    info.This().As<Napi::Object>().TypeTag(&Self::tag);
  }

  static void define(Napi::Env env) {
    Environment::of(env).constructor(Self::kind) =
        Napi::Persistent(Napi::ObjectWrap<Self>::DefineClass(env, Self::name, Self::properties()));
  }

  static Napi::Object create(Napi::Env env, Native native) {
    Environment& environment = Environment::of(env);
    environment.making = &native;
    return environment.constructor(Self::kind).New({});
  }

  /** The native value of the handle in `field`. Throws INVALID_ARGUMENT for another object, SLAB_RELEASED if given up. */
  static const Native& of(const Napi::Value& value, const std::string& field) {
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&Self::tag)) {
      throw_invalid(field, show(value), std::string("a ") + Self::name);
    }
    return Self::Unwrap(value.As<Napi::Object>())->native();
  }

 protected:
  const Native& native() const {
    if (!native_) throw Error(Code::slab_released, std::string("this ") + Self::name + " was released");
    return native_;
  }
  bool released() const { return !native_; }

  Napi::Value release(const Napi::CallbackInfo& info) {
    native_ = Native();
    return info.Env().Undefined();
  }

 private:
  Native native_;
};

}  // namespace switchyard::addon
