#include "tools/format.h"

#include <gtest/gtest.h>

#include <limits>

namespace tinyserve {
namespace {

TEST(Format, BytesInBinaryUnits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(98362432), "93.8 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{1023} << 20), "1.0 GiB");
  EXPECT_EQ(FormatBytes(UINT64_MAX), "16.0 EiB");
}

TEST(Format, CountsAndRates) {
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(134515008), "135 M");
  EXPECT_EQ(FormatCount(8030261248), "8.0 B");
  EXPECT_EQ(FormatBandwidth(13.72e9), "13.7 GB/s");
}

TEST(Format, SecondsGrowCoarser) {
  EXPECT_EQ(FormatSeconds(0.0049), "0.00 s");
  EXPECT_EQ(FormatSeconds(0.214), "0.21 s");
  EXPECT_EQ(FormatSeconds(12.34), "12.3 s");
  EXPECT_EQ(FormatSeconds(125), "2 min 05 s");
  EXPECT_EQ(FormatSeconds(3720), "1 h 02 min");
}

TEST(Format, UnknownShareIsADash) {
  EXPECT_EQ(FormatShare(0.614), "61 %");
  EXPECT_EQ(FormatShare(std::numeric_limits<double>::quiet_NaN()), "-");
}

TEST(Format, PrintableSpellsWhatSteersATerminal) {
  EXPECT_EQ(Printable("plain\ttext\n"), "plain\ttext\n");
  EXPECT_EQ(Printable("\x1b[2J\a"), "\\x1b[2J\\x07");
  EXPECT_EQ(Printable("a\rb"), "a\\x0db");
  EXPECT_EQ(Printable("\xc2\x9b"), "\\x9b");  // U+009B begins a control sequence, too
  EXPECT_EQ(Printable("\xc3\xa9 \xe2\x82\xac"), "\xc3\xa9 \xe2\x82\xac");
}

TEST(Format, PrintableLineCutsBetweenCharacters) {
  EXPECT_EQ(PrintableLine("a\nb", 10), "a\\nb");
  EXPECT_EQ(PrintableLine("\xc3\xa9\xc3\xa9\xc3\xa9", 2), "\xc3\xa9\xc3\xa9...");
  EXPECT_EQ(PrintableLine("abc", 3), "abc");
}

}  // namespace
}  // namespace tinyserve
