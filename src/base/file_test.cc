#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace tinyserve {
namespace {

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "tinyserve_file_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = dir_ + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::string dir_;
};

std::string TextOf(const MappedFile& file) {
  return std::string(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
}

TEST_F(FileTest, MapsAWholeFile) {
  const std::string text("one\0two\n", 8);
  Result<MappedFile> file = MappedFile::Open(Write("a", text));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(TextOf(*file), text);
}

TEST_F(FileTest, AnEmptyFileIsAnEmptyMapping) {
  Result<MappedFile> file = MappedFile::Open(Write("empty", ""));
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_TRUE(file->bytes().empty());
  file->Release(0, 100);  // nothing to release, and no harm
}

TEST_F(FileTest, ErrorsNameThePath) {
  Result<MappedFile> absent = MappedFile::Open(dir_ + "/absent");
  ASSERT_FALSE(absent.ok());
  EXPECT_EQ(absent.status().code(), Code::kNotFound);
  EXPECT_NE(absent.status().message().find(dir_ + "/absent"), std::string::npos);
  EXPECT_NE(absent.status().message().find("No such file"), std::string::npos);

  Result<MappedFile> directory = MappedFile::Open(dir_);
  ASSERT_FALSE(directory.ok());
  EXPECT_EQ(directory.status().code(), Code::kInvalidArgument);
  EXPECT_NE(directory.status().message().find(dir_), std::string::npos);
}

TEST_F(FileTest, MovingHandsTheMappingOn) {
  Result<MappedFile> a = MappedFile::Open(Write("a", "first"));
  Result<MappedFile> b = MappedFile::Open(Write("b", "second"));
  ASSERT_TRUE(a.ok() && b.ok());
  MappedFile moved(*std::move(a));
  EXPECT_EQ(TextOf(moved), "first");
  EXPECT_TRUE(a->bytes().empty());
  moved = *std::move(b);
  EXPECT_EQ(TextOf(moved), "second");
}

// Pages of the mapping that this process holds, by number.
std::vector<unsigned char> Resident(const MappedFile& file, size_t page_bytes) {
  std::vector<unsigned char> held(file.bytes().size() / page_bytes);
  EXPECT_EQ(mincore(const_cast<uint8_t*>(file.bytes().data()), file.bytes().size(), held.data()),
            0);
  return held;
}

TEST_F(FileTest, AReleasedRangeReadsTheSame) {
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::string text;
  for (size_t i = 0; i < 8 * page_bytes; ++i) text += static_cast<char>(i * 31 % 251);
  Result<MappedFile> file = MappedFile::Open(Write("big", text));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(TextOf(*file), text);
  EXPECT_EQ(Resident(*file, page_bytes).size(), 8u);
  file->Release(page_bytes / 2, 4 * page_bytes);
  file->Release(7 * page_bytes, 100 * page_bytes);  // past the end
  file->Release(1 << 30, 1);                        // outside
  file->Release(page_bytes, ~uint64_t{0} - 5);      // a length that wraps
  EXPECT_EQ(TextOf(*file), text);
}

TEST_F(FileTest, ReleasedPagesLeaveTheResidentSet) {
  constexpr size_t kBytes = size_t{64} << 20;
  const std::string path = Write("large", "");
  ASSERT_EQ(truncate(path.c_str(), kBytes), 0);
  Result<MappedFile> file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok());
  const auto resident_bytes = [] {
    std::ifstream statm("/proc/self/statm");
    size_t total = 0, resident = 0;
    statm >> total >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  };
  uint64_t sum = 0;
  for (size_t i = 0; i < kBytes; i += 4096) sum += file->bytes()[i];
  EXPECT_EQ(sum, 0u);
  const size_t before = resident_bytes();
  file->Release(0, kBytes);
  EXPECT_LT(resident_bytes() + kBytes / 2, before);
}

TEST_F(FileTest, ReadFileKeepsItsLimit) {
  const std::string path = Write("text", "12345678");
  Result<std::string> exact = ReadFile(path, 8);
  ASSERT_TRUE(exact.ok()) << exact.status().message();
  EXPECT_EQ(*exact, "12345678");
  Result<std::string> over = ReadFile(path, 7);
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.status().code(), Code::kInvalidArgument);
  EXPECT_NE(over.status().message().find("limit of 7 bytes"), std::string::npos);
}

TEST_F(FileTest, ReadFileStopsAtItsLimitOnAnEndlessFile) {
  Result<std::string> endless = ReadFile("/dev/zero", 1 << 20);
  ASSERT_FALSE(endless.ok());
  EXPECT_EQ(endless.status().code(), Code::kInvalidArgument);
}

TEST_F(FileTest, ReadFileOfADirectoryIsAnError) {
  Result<std::string> directory = ReadFile(dir_, 100);
  ASSERT_FALSE(directory.ok());
  EXPECT_EQ(directory.status().code(), Code::kIo);
}

}  // namespace
}  // namespace tinyserve
