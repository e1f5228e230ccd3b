#include "base/first_touch.h"

#include <gtest/gtest.h>

#include "base/buffer.h"
#include "tests/support/residency.h"

namespace tinyserve {
namespace {

constexpr uint64_t kHuge = 2 << 20;

class FirstTouchTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<Buffer> page = Buffer::Allocate(4096);
    ASSERT_TRUE(page.ok());
    if (!CanPopulate(page->data())) GTEST_SKIP() << "the system cannot populate memory";
  }

  ThreadPool threads_{2};
};

TEST_F(FirstTouchTest, MakesAPieceForEachThreadResidentAtATime) {
  Result<Buffer> buffer = Buffer::Allocate(8 * kHuge, /*huge=*/true);
  ASSERT_TRUE(buffer.ok());
  uint8_t* data = buffer->data();
  FirstTouch touch;
  EXPECT_FALSE(touch.Advance(&threads_));
  touch.Add(data, 3 * kHuge);
  touch.Add(data + 4 * kHuge, 1);
  EXPECT_EQ(ResidentPages(data, 8 * kHuge), 0u);
  EXPECT_TRUE(touch.Advance(&threads_));
  EXPECT_TRUE(IsResident(data, 2 * kHuge));
  EXPECT_EQ(ResidentPages(data + 2 * kHuge, 6 * kHuge), 0u);
  EXPECT_TRUE(touch.Advance(&threads_));
  EXPECT_TRUE(IsResident(data, 3 * kHuge));
  EXPECT_TRUE(IsResident(data + 4 * kHuge, 1));
  EXPECT_EQ(ResidentPages(data + 3 * kHuge, kHuge), 0u);
  EXPECT_EQ(ResidentPages(data + 5 * kHuge, 3 * kHuge), 0u);
  EXPECT_FALSE(touch.Advance(&threads_));
}

TEST_F(FirstTouchTest, ForgetsWhatIsLeft) {
  Result<Buffer> buffer = Buffer::Allocate(8 * kHuge, /*huge=*/true);
  ASSERT_TRUE(buffer.ok());
  FirstTouch touch;
  touch.Add(buffer->data(), 3 * kHuge);
  EXPECT_TRUE(touch.Advance(&threads_));
  touch.Clear();
  touch.Add(buffer->data() + 6 * kHuge, kHuge);
  EXPECT_TRUE(touch.Advance(&threads_));
  EXPECT_FALSE(touch.Advance(&threads_));
  EXPECT_EQ(ResidentPages(buffer->data() + 2 * kHuge, 4 * kHuge), 0u);
  EXPECT_TRUE(IsResident(buffer->data() + 6 * kHuge, kHuge));
}

// Nor need it begin or end with a page.
TEST_F(FirstTouchTest, ChangesNoContents) {
  Result<Buffer> buffer = Buffer::Allocate(2 * kHuge, /*huge=*/true);
  ASSERT_TRUE(buffer.ok());
  uint8_t* data = buffer->data();
  for (uint64_t i = 0; i < kHuge; i += 4099) data[i] = static_cast<uint8_t>(i % 251 + 1);
  FirstTouch touch;
  touch.Add(data + 100, 2 * kHuge - 100);
  while (touch.Advance(&threads_)) {
  }
  EXPECT_TRUE(IsResident(data, 2 * kHuge));
  for (uint64_t i = 0; i < 2 * kHuge; ++i) {
    const bool written = i < kHuge && i % 4099 == 0;
    ASSERT_EQ(data[i], written ? i % 251 + 1 : 0) << i;
  }
}

}  // namespace
}  // namespace tinyserve
