#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <fstream>
#include <iterator>
#include <string>

#include "experts/cpu/memory.h"

namespace switchyard::cpu {
namespace {

/** Whether a setting of the system gives no huge pages; settings that are not there change nothing. */
bool is_never(const std::string& setting) {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/" + setting);
  return std::string(std::istreambuf_iterator(file), {}).find("[never]") != std::string::npos;
}

TEST(HugePageShare, IsNothingInAProcessThatGetsNone) {
  ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
  EXPECT_EQ(huge_page_share(), 0);
  ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
}

TEST(HugePageShare, IsMoreWhereTheSystemGivesSome) {
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled") || is_never("enabled") || is_never("hugepages-2048kB/enabled")) {
    GTEST_SKIP() << "the system gives no huge pages";
  }
  EXPECT_GT(huge_page_share(), 0);
  EXPECT_LE(huge_page_share(), 1);
}

}  // namespace
}  // namespace switchyard::cpu
