// What holds of coded pages of every kind, on every target that this machine has: the same bytes as
// `ref`, and attention over what they stand for.
#include "page/coded.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
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

// What decode multiplies with where it reads codes as they are (cpu/attention_ranges.inl).
enum class Operands { kFloats, kWords, kBytes };
struct DecodeForm {
  Operands keys, values;
};
DecodeForm DecodeFormOf(const Kernels& kernels, KvType type) {
  const std::string name = kernels.name;
  if (name == "ref" || !IsRanged(type)) return {Operands::kFloats, Operands::kFloats};
  const bool byte_dots =
      name.find("vnni") != std::string::npos || name.find("bf16") != std::string::npos;
  const RangesLayout at = RangesLayoutOf(type, 16);
  return {byte_dots || at.key_bits == 4 ? Operands::kBytes : Operands::kWords,
          byte_dots || at.value_bits == 4 ? Operands::kBytes : Operands::kWords};
}

// Bounds on what decode adds to the error of f32 arithmetic over decoded pages, for the first
// queries:
//   - a query is off by half a code of its largest, of 2^15 - 1;
//   - a product q_c * step_c by half a code of 1/2^8 of the largest query times the largest reach;
//   - as bytes, by half a code of the page's largest one, which is 126 or 127; 1.02 is for the
//   words
//     that it is made of. Either way it meets codes of up to half;
//   - a weight times its value's step by half a code of the largest of 64 tokens; those meet codes
//   of
//     up to half, too: the largest reach takes the place of the largest value.
CodeSteps DecodeSteps(const DecodeForm& form, const SealedHead& head, const Tokens& t) {
  CodeSteps steps;
  if (form.keys == Operands::kFloats) return steps;
  steps.q = 1.0 / 32767;
  steps.weight = form.values == Operands::kBytes ? 1.02 / 255 : 1.02 / 32767;
  for (uint32_t page = 0; page < head.pages(); ++page) {
    RangeScales scales;
    std::memcpy(&scales, head.Spread(page), sizeof scales);
    const uint8_t* reaches = head.Spread(page) + sizeof scales + head.layout().channels;
    for (uint32_t h = 0; h < t.group; ++h) {
      double q_max = 0, product_max = 0;
      for (uint32_t c = 0; c < t.head_dim; ++c) {
        const double q = std::fabs(t.q[size_t{h} * t.head_dim + c]);
        q_max = std::max(q_max, q);
        product_max = std::max(product_max, q * reaches[c] * scales.key_reach);
      }
      double off = q_max / 32767 * 256 * scales.key_reach / 2;
      if (form.keys == Operands::kBytes) off += 1.02 * product_max / 126 / 2;
      steps.product = std::max(steps.product, t.head_dim * off);
    }
  }
  return steps;
}

TEST_P(CodedPages, DecodeAttendsToWhatCodesStandFor) {
  const DecodeForm form = DecodeFormOf(kernels(), type());
  for (const uint32_t dim : Dims({16, 33, 64, 72, 80, 96, 128, 256})) {
    for (const uint32_t group : {1u, 2u, 3u, 4u, 5u, 6u, 7u}) {
      for (const bool odd : {false, true}) {
        const Tokens t = odd ? MakeOddTokens(208, dim, group, dim + group)
                             : MakeTokens(208, dim, group, dim + group);
        const SealedHead head = Seal(t, 3, KvType::kF16);
        const Tokens decoded = head.Decoded();
        std::vector<OwnedPartial> parts;
        parts.push_back(head.Decode(kScale, 0, 96));
        parts.push_back(head.Decode(kScale, 96, 208));
        ASSERT_EQ(Mismatch(Merge(kernels(), parts, group, dim), Exact(decoded, kScale, 0, 208),
                           AttentionTolerance(decoded, kScale, 0, 208, DecodeSteps(form, head, t))),
                  "")
            << dim << " " << group << " " << odd;
      }
    }
  }
}

// The bound above is for the worst case; typically noise is much lower.
TEST_P(CodedPages, DecodeNoiseIsLow) {
  const DecodeForm form = DecodeFormOf(kernels(), type());
  double least = 110;
  if (form.keys != Operands::kFloats || form.values != Operands::kFloats) {
    least = form.keys == Operands::kBytes || form.values == Operands::kBytes ? 32 : 70;
  }
  for (const uint32_t dim : Dims({64, 80, 128})) {
    const Tokens t = MakeTokens(512, dim, 5, dim);
    const SealedHead head = Seal(t, 3, KvType::kF16);
    std::vector<OwnedPartial> parts;
    parts.push_back(head.Decode(kScale, 0, 512));
    const double snr =
        SnrDb(Merge(kernels(), parts, 5, dim), Exact(head.Decoded(), kScale, 0, 512));
    EXPECT_GT(snr, least) << dim;
  }
}

// Every code at an end of its range, and queries and weights all alike: no sum overflows.
TEST_P(CodedPages, LargestSumsFit) {
  const DecodeForm form = DecodeFormOf(kernels(), type());
  for (const uint32_t dim : Dims({16, 64, 128, 256})) {
    for (const float sign : {1.0f, -1.0f}) {
      Tokens t = MakeTokens(128, dim, 2, 1);
      std::fill(t.q.begin(), t.q.end(), sign * 0.5f / static_cast<float>(dim));
      for (uint32_t i = 0; i < t.tokens * dim; ++i) {
        t.k[i] = i / dim % 2 == 0 ? 1.0f : -1.0f;
        t.v[i] = i % dim % 2 == 0 || i / dim % 16 == 0 ? 1.0f : -1.0f;
      }
      const SealedHead head = Seal(t, 3);
      std::vector<OwnedPartial> parts;
      parts.push_back(head.Decode(1, 0, t.tokens));
      const Tokens decoded = head.Decoded();
      ASSERT_EQ(Mismatch(Merge(kernels(), parts, 2, dim), Exact(decoded, 1, 0, t.tokens),
                         AttentionTolerance(decoded, 1, 0, t.tokens, DecodeSteps(form, head, t))),
                "")
          << dim << " " << sign;
    }
  }
}

// Scales belong to a head: its result does not depend on those that share its pass.
TEST_P(CodedPages, HeadsAloneAreHeadsTogether) {
  const uint32_t dim = 72, group = 7, tokens = 160;
  const Tokens t = MakeTokens(tokens, dim, group, 17);
  OwnedPartial together = Seal(t, 3).Decode(kScale, 0, tokens);
  for (uint32_t h = 0; h < group; ++h) {
    Tokens one = t;
    one.group = 1;
    one.q.assign(t.q.begin() + h * dim, t.q.begin() + (h + 1) * dim);
    one.q.resize(size_t{tokens} * dim);
    const OwnedPartial alone = Seal(one, 3).Decode(kScale, 0, tokens);
    EXPECT_EQ(alone.m[0], together.m[h]) << h;
    EXPECT_EQ(alone.d[0], together.d[h]) << h;
    const std::vector<float> o(together.o.begin() + h * dim, together.o.begin() + (h + 1) * dim);
    EXPECT_TRUE(SameBits(alone.o, o)) << h;
  }
}

// Queries of zeros weigh all tokens alike; those that are no numbers harm no other head.
TEST_P(CodedPages, OddQueries) {
  const uint32_t dim = 64, tokens = 96;
  Tokens t = MakeTokens(tokens, dim, 3, 19);
  std::fill_n(t.q.begin(), dim, 0.0f);
  const OwnedPartial want = Seal(t, 3).Decode(kScale, 0, tokens);
  EXPECT_EQ(want.m[0], 0.0f);
  EXPECT_NEAR(want.d[0], tokens, 1e-4);
  t.q[dim] = NAN;
  t.q[2 * dim - 1] = INFINITY;
  const OwnedPartial got = Seal(t, 3).Decode(kScale, 0, tokens);
  for (const uint32_t h : {0u, 2u}) {
    EXPECT_EQ(got.d[h], want.d[h]);
    for (uint32_t c = 0; c < dim; ++c) ASSERT_EQ(got.o[h * dim + c], want.o[h * dim + c]);
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
