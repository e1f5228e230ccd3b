#include "base/machine.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace tinyserve {
namespace {

// A directory that stands for "/", with the files that a cgroup puts there.
class FakeRoot {
 public:
  FakeRoot()
      : path_(testing::TempDir() + "fake_root_" +
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(path_);
  }
  ~FakeRoot() { std::filesystem::remove_all(path_); }
  void Write(const std::string& file, const std::string& text) const {
    const std::filesystem::path full = path_ + "/" + file;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Machine, NoCgroupMeansNoLimit) {
  const FakeRoot root;
  EXPECT_EQ(CgroupCores(root.path()), 0u);
  EXPECT_EQ(CgroupMemoryBytes(root.path()), UINT64_MAX);
}

TEST(Machine, VersionTwoTakesTheTightestOfAllParents) {
  const FakeRoot root;
  root.Write("proc/self/cgroup", "0::/a/b\n");
  root.Write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  root.Write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  root.Write("sys/fs/cgroup/a/b/memory.max", "max\n");
  root.Write("sys/fs/cgroup/a/memory.max", "3000000\n");
  root.Write("sys/fs/cgroup/a/memory.high", "2000000\n");
  EXPECT_EQ(CgroupCores(root.path()), 2u);  // a core and a half is two threads
  EXPECT_EQ(CgroupMemoryBytes(root.path()), 2000000u);
}

TEST(Machine, VersionOne) {
  const FakeRoot root;
  root.Write("proc/self/cgroup", "4:cpu,cpuacct:/box\n7:memory:/box\n0::/\n");
  root.Write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "300000\n");
  root.Write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n");
  root.Write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  root.Write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1048576\n");
  EXPECT_EQ(CgroupCores(root.path()), 3u);
  EXPECT_EQ(CgroupMemoryBytes(root.path()), 1048576u);
}

TEST(Machine, NonsenseIsNoLimit) {
  const FakeRoot root;
  root.Write("proc/self/cgroup", "garbage\n0::/x\n:::\n");
  root.Write("sys/fs/cgroup/x/cpu.max", "-1 0\n");
  root.Write("sys/fs/cgroup/x/memory.max", "a lot\n");
  EXPECT_EQ(CgroupCores(root.path()), 0u);
  EXPECT_EQ(CgroupMemoryBytes(root.path()), UINT64_MAX);
}

TEST(Machine, ThisMachineMakesSense) {
  EXPECT_GE(UsableCores(), 1u);
  EXPECT_GT(MemoryLimitBytes(), 16u << 20);
  EXPECT_GT(ResidentBytes(), 0u);
  EXPECT_GE(PeakResidentBytes(), ResidentBytes() / 2);
  EXPECT_FALSE(CpuName().empty());
}

}  // namespace
}  // namespace tinyserve
