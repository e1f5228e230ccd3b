#include "base/buffer.h"

#include <gtest/gtest.h>

#include <utility>

namespace tinyserve {
namespace {

TEST(Buffer, IsZeroedAlignedAndMoves) {
  for (bool huge : {false, true}) {
    auto buffer = Buffer::Allocate(3 << 20, huge);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (huge ? 2u << 20 : 64u), 0u);
    EXPECT_EQ(buffer->data()[0], 0);
    EXPECT_EQ(buffer->data()[(3 << 20) - 1], 0);
    buffer->data()[7] = 9;
    const Buffer moved = *std::move(buffer);
    EXPECT_EQ(moved.data()[7], 9);
    EXPECT_EQ(moved.size(), 3u << 20);
  }
}

TEST(Buffer, TooMuchIsAnErrorWithTheFigure) {
  for (uint64_t bytes : {uint64_t{1} << 62, UINT64_MAX}) {
    const auto buffer = Buffer::Allocate(bytes, true);
    ASSERT_FALSE(buffer.ok());
    EXPECT_EQ(buffer.status().code(), Code::kOutOfMemory);
    EXPECT_NE(buffer.status().message().find(std::to_string(bytes)), std::string::npos);
  }
}

}  // namespace
}  // namespace tinyserve
