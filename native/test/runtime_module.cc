#include <gtest/gtest.h>

#include "runtime/module_file.h"

namespace switchyard {
namespace {

TEST(ModuleFile, SaysWhyItCannotBeLoaded) {
  const ModuleFile absent("/nonexistent/switchyard_ucx.so", "switchyard_ucx");
  EXPECT_FALSE(absent.present());
  EXPECT_EQ(absent.module<int>(), nullptr);
  const ModuleFile wrong("/proc/self/cmdline", "switchyard_ucx");
  EXPECT_TRUE(wrong.present());
  EXPECT_EQ(wrong.module<int>(), nullptr);
  EXPECT_FALSE(wrong.problem().empty());
}

}  // namespace
}  // namespace switchyard
