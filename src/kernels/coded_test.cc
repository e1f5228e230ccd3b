// What holds of coded pages of every kind, on every target that this machine has: the same bytes as
// `ref`, and attention over what they stand for.
#include "page/coded.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>

#include "kernels/coded_testing.h"
#include "kernels/tables.h"
#include "kernels/targets.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr float kScale = 0.125f;

class CodedPages : public ::testing::TestWithParam<std::tuple<const Kernels*, KvType>> {
 protected:
  const Kernels& kernels() const { return *std::get<0>(GetParam()); }
  KvType type() const { return std::get<1>(GetParam()); }
  SealedHead Seal(const Tokens& t, uint64_t seed, KvType open = KvType::kF32) const {
    return SealedHead(kernels(), t, open, seed, 0, type());
  }
  // Of some head sizes, those that this kind may have.
  std::vector<uint32_t> Dims(std::vector<uint32_t> dims) const {
    std::erase_if(dims, [&](uint32_t dim) { return dim > CodedHeadDimMax(type()); });
    return dims;
  }
};

TEST_P(CodedPages, BytesAreThoseOfThePlainLoops) {
  for (const uint32_t dim : Dims({5, 15, 16, 33, 64, 72, 80, 96, 128, 256})) {
    for (const KvType open : {KvType::kF32, KvType::kF16, KvType::kBF16}) {
      const Tokens t = MakeOddTokens(96, dim, 1, dim);
      const SealedHead head = Seal(t, 1, open);
      const SealedHead plain(*RefKernels(), t, open, 1, 0, type());
      for (uint32_t page = 0; page < head.pages(); ++page) {
        ASSERT_EQ(head.SpreadBytes(page), plain.SpreadBytes(page)) << dim << " page " << page;
        ASSERT_EQ(head.PageBytes(page), plain.PageBytes(page)) << dim << " page " << page;
      }
    }
  }
}

// Beyond the half float range, and no numbers: some bytes, the same each time, and nothing trips.
TEST_P(CodedPages, NumbersThatAreNoneAreCoded) {
  Tokens t = MakeTokens(64, 64, 1, 5);
  t.k[3] = NAN;
  t.k[64 * 20 + 1] = INFINITY;
  t.v[64 * 20 + 2] = -INFINITY;
  t.v[64 * 40] = NAN;
  t.k[64 * 50] = 3e38f;
  const Tokens decoded = Seal(t, 1).Decoded();
  for (const float x : decoded.k) ASSERT_TRUE(std::isfinite(x));
  for (const float x : decoded.v) ASSERT_TRUE(std::isfinite(x));
}

// Padding is written too: what a page held before leaves no trace.
TEST_P(CodedPages, EqualTokensMakeEqualBytes) {
  Tokens t = MakeTokens(32, 72, 1, 9);
  std::copy_n(t.k.begin(), 16 * 72, t.k.begin() + 16 * 72);
  std::copy_n(t.v.begin(), 16 * 72, t.v.begin() + 16 * 72);
  const SealedHead head = Seal(t, 1, KvType::kF16);
  EXPECT_EQ(head.PageBytes(0), head.PageBytes(1));
  EXPECT_EQ(head.SpreadBytes(0), head.SpreadBytes(1));
}

TEST_P(CodedPages, DecodeAttendsToWhatCodesStandFor) {
  for (const uint32_t dim : Dims({16, 33, 64, 72, 128, 256})) {
    for (const uint32_t group : {1u, 3u, 4u, 7u}) {
      const Tokens t = MakeTokens(208, dim, group, dim + group);
      const SealedHead head = Seal(t, 3, KvType::kF16);
      const Tokens decoded = head.Decoded();
      std::vector<OwnedPartial> parts;
      parts.push_back(head.Decode(kScale, 0, 96));
      parts.push_back(head.Decode(kScale, 96, 208));
      EXPECT_EQ(Mismatch(Merge(kernels(), parts, group, dim), Exact(decoded, kScale, 0, 208),
                         AttentionTolerance(decoded, kScale, 0, 208, {})),
                "")
          << dim << " " << group;
    }
  }
}

TEST_P(CodedPages, PromptReadsCodedKeysThenOpenOnes) {
  const uint32_t sealed_tokens = 128, tokens = 180, first = 131, group = 3;
  for (const uint32_t dim : {64u, 80u}) {
    const Tokens t = MakeTokens(192, dim, group, 11);
    const SealedHead head = Seal(t, 4, KvType::kF16);
    const Tokens seen = head.Seen(sealed_tokens, tokens);
    const size_t width = size_t{group} * dim;
    const std::vector<float> out = head.Prompt(kScale, sealed_tokens, first, tokens, Compute::kF32);
    ASSERT_EQ(out.size(), (tokens - first) * width);
    for (uint32_t row = first; row < tokens; ++row) {
      const auto begin = out.begin() + static_cast<long>((row - first) * width);
      ASSERT_EQ(Mismatch(std::vector<float>(begin, begin + static_cast<long>(width)),
                         Exact(seen, kScale, row, row + 1),
                         AttentionTolerance(seen, kScale, row, row + 1, {})),
                "")
          << dim << " " << row;
    }
  }
}

std::string NameOf(const ::testing::TestParamInfo<std::tuple<const Kernels*, KvType>>& test) {
  constexpr const char* kNames[] = {"planes", "int8", "k8v4", "int4"};
  const auto kind = static_cast<uint32_t>(std::get<1>(test.param));
  return TargetName()(
             ::testing::TestParamInfo<const Kernels*>(std::get<0>(test.param), test.index)) +
         "_" + kNames[kind - static_cast<uint32_t>(KvType::kPlanes)];
}

INSTANTIATE_TEST_SUITE_P(Targets, CodedPages,
                         ::testing::Combine(::testing::ValuesIn(AvailableTargets()),
                                            ::testing::Values(KvType::kPlanes, KvType::kInt8,
                                                              KvType::kK8V4, KvType::kInt4)),
                         NameOf);

}  // namespace
}  // namespace tinyserve
