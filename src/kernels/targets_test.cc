#include "kernels/targets.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

namespace tinyserve {
namespace {

class Targets : public ::testing::Test {
 protected:
  void SetUp() override { unsetenv("TINYSERVE_TARGET"); }
  void TearDown() override { unsetenv("TINYSERVE_TARGET"); }
};

TEST_F(Targets, RefIsLastAndNamesAreUnique) {
  const std::vector<const Kernels*> available = AvailableTargets();
  ASSERT_FALSE(available.empty());
  EXPECT_STREQ(available.back()->name, "ref");
  const std::vector<std::string> compiled = CompiledTargets();
  EXPECT_EQ(std::set<std::string>(compiled.begin(), compiled.end()).size(), compiled.size());
  EXPECT_EQ(compiled.size(), 6u);
}

// Detection agrees with the compiler's own, which also asks the operating system.
TEST_F(Targets, DetectionAgreesWithTheCompiler) {
  std::set<std::string> names;
  for (const Kernels* table : AvailableTargets()) names.insert(table->name);
  EXPECT_EQ(names.count("avx2") == 1, __builtin_cpu_supports("avx2") &&
                                          __builtin_cpu_supports("fma") &&
                                          __builtin_cpu_supports("bmi2"));
  EXPECT_EQ(names.count("avx512") == 1,
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"));
  EXPECT_EQ(names.count("avx512-vnni") == 1,
            names.count("avx512") == 1 && __builtin_cpu_supports("avx512vnni"));
}

TEST_F(Targets, EmptyNameIsTheBest) {
  const auto target = TargetFor("");
  ASSERT_TRUE(target.ok());
  EXPECT_EQ(*target, AvailableTargets().front());
}

TEST_F(Targets, TheVariableForcesATarget) {
  setenv("TINYSERVE_TARGET", "ref", 1);
  const auto forced = TargetFor("");
  ASSERT_TRUE(forced.ok());
  EXPECT_STREQ((*forced)->name, "ref");
  setenv("TINYSERVE_TARGET", "mmx", 1);
  const auto unknown = TargetFor("");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.status().code(), Code::kInvalidArgument);
  EXPECT_NE(unknown.status().message().find("TINYSERVE_TARGET \"mmx\""), std::string::npos);
  EXPECT_NE(unknown.status().message().find("avx512-vnni"), std::string::npos);
}

TEST_F(Targets, AMissingTargetSaysWhatIsMissing) {
  std::set<std::string> names;
  for (const Kernels* table : AvailableTargets()) names.insert(table->name);
  for (const std::string& name : CompiledTargets()) {
    const auto target = TargetFor(name);
    if (names.count(name) == 1) {
      ASSERT_TRUE(target.ok());
      EXPECT_EQ((*target)->name, name);
    } else {
      ASSERT_FALSE(target.ok());
      EXPECT_EQ(target.status().code(), Code::kUnsupported);
      EXPECT_NE(target.status().message().find("lacks AVX"), std::string::npos)
          << target.status().message();
    }
  }
}

}  // namespace
}  // namespace tinyserve
