#include "base/first_touch.h"

#include <gtest/gtest.h>

#include "base/buffer.h"
#include "tests/support/residency.h"

namespace tinyserve {
namespace {

class FirstTouchTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<Buffer> page = Buffer::Allocate(4096);
    ASSERT_TRUE(page.ok());
    if (!CanPopulate(page->data())) GTEST_SKIP() << "the system cannot populate memory";
  }
};

TEST_F(FirstTouchTest, MakesWhatIsAskedForResidentAndNothingElse) {
  constexpr uint64_t kBytes = 1 << 20;
  Result<Buffer> buffer = Buffer::Allocate(4 * kBytes);
  ASSERT_TRUE(buffer.ok());
  uint8_t* data = buffer->data();
  FirstTouch touch;
  // Neither begins nor ends with a system page.
  touch.Ask(data + kBytes + 100, kBytes);
  touch.Ask(data + 3 * kBytes, 1);
  ASSERT_TRUE(BecomesResident(data + 3 * kBytes, 1));
  EXPECT_EQ(ResidentPages(data + kBytes + 100, kBytes), kBytes / 4096 + 1);
  EXPECT_EQ(ResidentPages(data, kBytes), 0u);
  EXPECT_EQ(ResidentPages(data + 2 * kBytes + 8192, kBytes - 8192), 0u);
}

TEST_F(FirstTouchTest, ChangesNothingThatOthersWriteMeanwhile) {
  constexpr uint64_t kBytes = 8 << 20;
  Result<Buffer> buffer = Buffer::Allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  uint64_t* words = buffer->as<uint64_t>();
  FirstTouch touch;
  touch.Ask(buffer->data(), kBytes);
  for (uint64_t i = 0; i < kBytes / 8; i += 8) words[i] = i + 1;
  ASSERT_TRUE(BecomesResident(buffer->data(), kBytes));
  for (uint64_t i = 0; i < kBytes / 8; ++i) ASSERT_EQ(words[i], i % 8 == 0 ? i + 1 : 0) << i;
}

TEST_F(FirstTouchTest, EndsWithWorkLeft) {
  constexpr uint64_t kBytes = uint64_t{4} << 30;
  Result<Buffer> buffer = Buffer::Allocate(kBytes);
  ASSERT_TRUE(buffer.ok());
  {
    FirstTouch touch;
    touch.Ask(buffer->data(), kBytes);
  }
  EXPECT_LT(ResidentPages(buffer->data(), kBytes), kBytes / 4096);
}

}  // namespace
}  // namespace tinyserve
