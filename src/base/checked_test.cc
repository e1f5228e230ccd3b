#include "base/checked.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>

namespace tinyserve {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
using Wide = unsigned __int128;  // the oracle: sums and products of two uint64_t never wrap in it

void ExpectSame(Checked got, Wide want, const char* operation, uint64_t a, uint64_t b) {
  EXPECT_EQ(got.valid(), want <= kMax) << a << " " << operation << " " << b;
  if (got.valid()) {
    EXPECT_EQ(got.value(), static_cast<uint64_t>(want)) << a << " " << operation << " " << b;
  }
}

TEST(CheckedTest, AgreesWithWideArithmetic) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 100000; ++i) {
    // Any magnitude is as likely as any other, so that both sides of each edge occur.
    const uint64_t a = rng() >> (rng() % 64), b = rng() >> (rng() % 64);
    ExpectSame(Checked(a) + Checked(b), Wide{a} + b, "+", a, b);
    ExpectSame(Checked(a) * Checked(b), Wide{a} * b, "*", a, b);
    const Checked difference = Checked(a) - Checked(b);
    EXPECT_EQ(difference.valid(), a >= b);
    if (a >= b) {
      EXPECT_EQ(difference.value(), a - b);
    }
    if (b != 0) ExpectSame(Checked(a).RoundUp(b), (Wide{a} + b - 1) / b * b, "up to", a, b);
  }
}

TEST(CheckedTest, EdgesOfSixtyFourBits) {
  EXPECT_TRUE((Checked(kMax) + Checked(0)).valid());
  EXPECT_FALSE((Checked(kMax) + Checked(1)).valid());
  EXPECT_FALSE((Checked(0) - Checked(1)).valid());
  EXPECT_FALSE((Checked(uint64_t{1} << 32) * Checked(uint64_t{1} << 32)).valid());
  EXPECT_TRUE((Checked(uint64_t{1} << 32) * Checked((uint64_t{1} << 32) - 1)).valid());
}

TEST(CheckedTest, OnceWrappedStaysInvalid) {
  const Checked wrapped = Checked(kMax) + Checked(1);
  EXPECT_FALSE((wrapped + Checked(1)).valid());
  EXPECT_FALSE((Checked(1) - wrapped).valid());
  EXPECT_FALSE((wrapped * Checked(0)).valid());
  EXPECT_FALSE(wrapped.RoundUp(8).valid());
  EXPECT_FALSE(wrapped.AtMost(kMax));
}

TEST(CheckedTest, RoundUpRefusesAUnitOfZeroAndAResultPastTheEnd) {
  EXPECT_FALSE(Checked(5).RoundUp(0).valid());
  EXPECT_FALSE(Checked(kMax - 2).RoundUp(8).valid());
  EXPECT_EQ(Checked(0).RoundUp(32).value(), 0u);
  EXPECT_EQ(Checked(33).RoundUp(32).value(), 64u);
}

TEST(CheckedTest, AtMostIncludesTheLimit) {
  EXPECT_TRUE(Checked(8).AtMost(8));
  EXPECT_FALSE(Checked(9).AtMost(8));
}

TEST(CheckedDeathTest, TheValueOfAWrappedResultIsABug) {
  EXPECT_DEATH((Checked(kMax) + Checked(1)).value(), "check failed: valid_");
}

}  // namespace
}  // namespace tinyserve
