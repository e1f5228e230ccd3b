// Attention of every target that this machine has, `ref` too, against arithmetic in double.
#include <gtest/gtest.h>

#include <string>

#include "kernels/attention_testing.h"
#include "kernels/tables.h"
#include "kernels/targets.h"
#include "tensor/convert.h"
#include "tests/support/sanitized.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kBF16};
constexpr uint32_t kDims[] = {16, 20, 32, 64, 72, 80, 96, 128};
constexpr uint32_t kGroups[] = {1, 2, 3, 4, 5, 7, 8};
constexpr uint32_t kPageTokens[] = {4, 8, 16, 32, 64};
// Around the borders of vectors, pages, tiles and blocks.
constexpr uint32_t kLengths[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 200, 257};
constexpr float kScale = 0.125f;

// What the type keeps of a number.
float Rounded(KvType type, float value) {
  switch (type) {
    case KvType::kF32:
      return value;
    case KvType::kF16:
      return F16ToF32(F32ToF16(value));
    case KvType::kBF16:
      return BF16ToF32(F32ToBF16(value));
    default:
      break;  // not a type of single numbers
  }
  return NAN;
}

// Tokens that a type stores exactly, so that tolerances speak of arithmetic alone.
Tokens MakeStoredTokens(KvType type, uint32_t tokens, uint32_t head_dim, uint32_t group,
                        uint64_t seed) {
  Tokens t = MakeTokens(tokens, head_dim, group, seed);
  for (float& value : t.k) value = Rounded(type, value);
  for (float& value : t.v) value = Rounded(type, value);
  return t;
}

// What a target's fast form codes numbers in, and the signal to noise that it reaches on the tokens
// of these tests.
struct FastForm {
  CodeSteps steps;
  double snr_db_min;
};
FastForm FastFormOf(const Kernels& kernels, uint32_t head_dim) {
  const std::string name = kernels.name;
  if (name == "ref") return {{}, 110};
  const CodeSteps bytes = {1.0 / 127, 1.0 / 127, 1.0 / 127, 1.0 / 255};
  if (name.find("vnni") != std::string::npos || name.find("bf16") != std::string::npos) {
    return {bytes, 30};
  }
  // int16 as wide as sums of head_dim products allow, or of a tile's 64.
  const double sum_max = 2147483647.0;
  const double dot = 1.0 / std::floor(std::sqrt(sum_max / head_dim));
  const double tile = 1.0 / std::floor(std::sqrt(sum_max / 64));
  if (name == "avx2") return {{dot, dot, bytes.v, bytes.weight}, 38};
  return {{dot, dot, tile, tile}, 55};
}

class Attention : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

TEST_P(Attention, AppendedTokensReadBackHoweverTheyCame) {
  for (const KvType type : kTypes) {
    for (const uint32_t dim : kDims) {
      for (const uint32_t page_tokens : kPageTokens) {
        const KvShape shape{type, 1, dim, page_tokens};
        const uint32_t tokens = 2 * page_tokens + 3;
        const Tokens t = MakeTokens(tokens, dim, 1, dim);
        PagedHead at_once(kernels(), shape, tokens, 1), in_pieces(kernels(), shape, tokens, 1);
        at_once.Append(t, 0, tokens);
        for (uint32_t i = 0, n = 1; i < tokens; i += n, n = n % 7 + 1) {
          in_pieces.Append(t, i, std::min(n, tokens - i));
        }
        for (uint32_t i = 0; i < tokens; ++i) {
          std::vector<float> want;
          for (uint32_t c = 0; c < dim; ++c) want.push_back(Rounded(type, t.k[i * dim + c]));
          for (uint32_t c = 0; c < dim; ++c) want.push_back(Rounded(type, t.v[i * dim + c]));
          ASSERT_EQ(at_once.Read(i), want) << dim << " " << page_tokens << " " << i;
          ASSERT_EQ(in_pieces.Read(i), want) << dim << " " << page_tokens << " " << i;
        }
      }
    }
  }
}

TEST_P(Attention, PagesAreWholeLines) {
  for (const uint32_t dim : kDims) {
    const KvShape shape{KvType::kF16, 1, dim, 16};
    uint32_t k_bytes, v_bytes;
    kernels().page_bytes(&shape, &k_bytes, &v_bytes);
    EXPECT_EQ(k_bytes % 64, 0u);
    EXPECT_EQ(v_bytes % 64, 0u);
    EXPECT_GE(k_bytes, dim * 32);
    EXPECT_GE(v_bytes, dim * 32);
    // Head sizes that occur are not padded.
    if (dim % 16 == 0) {
      EXPECT_EQ(k_bytes + v_bytes, dim * 64) << dim;
    }
  }
}

// One pass over types, head sizes, groups and pages; the lengths take turns.
template <class Check>
void ForShapes(Check check) {
  uint32_t turn = 0;
  for (const KvType type : kTypes) {
    for (const uint32_t dim : kDims) {
      for (const uint32_t group : kGroups) {
        for (const uint32_t page_tokens : kPageTokens) {
          const uint32_t length = kLengths[turn++ % std::size(kLengths)];
          // Sizes change no bit, a test below says; one of each form is enough for a sanitizer.
          if (kSanitized && page_tokens != 4 && page_tokens != 64) continue;
          SCOPED_TRACE("type " + std::to_string(static_cast<int>(type)) + " dim " +
                       std::to_string(dim) + " group " + std::to_string(group) + " page " +
                       std::to_string(page_tokens) + " length " + std::to_string(length));
          check(KvShape{type, 1, dim, page_tokens}, group, length);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST_P(Attention, DecodeIsExact) {
  ForShapes([&](const KvShape& shape, uint32_t group, uint32_t length) {
    const uint32_t dim = shape.head_dim;
    const Tokens t = MakeStoredTokens(shape.type, length, dim, group, length);
    PagedHead head(kernels(), shape, length, 5);
    head.Append(t, 0, length);
    std::vector<OwnedPartial> got;
    got.push_back(Decode(head, t, kScale, length - 1, 0, length));
    ASSERT_EQ(Mismatch(Merge(kernels(), got, group, dim), Exact(t, kScale, length - 1, length),
                       AttentionTolerance(t, kScale, length - 1, length, {})),
              "");
  });
}

// A partial is in units that any table's merge understands.
TEST_P(Attention, PartialsAreThoseOfRef) {
  const uint32_t length = 100, dim = 64, group = 5;
  const KvShape shape{KvType::kF16, 1, dim, 16};
  const Tokens t = MakeStoredTokens(KvType::kF16, length, dim, group, 71);
  PagedHead head(kernels(), shape, length, 5), ref(*RefKernels(), shape, length, 6);
  head.Append(t, 0, length);
  ref.Append(t, 0, length);
  const OwnedPartial got = Decode(head, t, kScale, length - 1, 0, length);
  const OwnedPartial want = Decode(ref, t, kScale, length - 1, 0, length);
  for (uint32_t h = 0; h < group; ++h) {
    EXPECT_NEAR(got.m[h], want.m[h], 1e-5 * (1 + std::fabs(want.m[h])));
    EXPECT_NEAR(got.d[h], want.d[h], 1e-4 * want.d[h]);
    for (uint32_t c = 0; c < dim; ++c) {
      EXPECT_NEAR(got.o[h * dim + c], want.o[h * dim + c], 1e-4 * want.d[h]);
    }
  }
}

TEST_P(Attention, PromptIsExact) {
  ForShapes([&](const KvShape& shape, uint32_t group, uint32_t length) {
    const Tokens t = MakeStoredTokens(shape.type, length, shape.head_dim, group, length);
    PagedHead head(kernels(), shape, length, 5);
    head.Append(t, 0, length);
    // The last rows see most and the first ones least; those between differ in nothing.
    const uint32_t rows = std::min(length, 5u);
    for (const uint32_t first : {0u, length - rows}) {
      for (const Compute compute : {Compute::kF32, Compute::kFast}) {
        const auto got = Prompt(head, t, kScale, first, rows, rows, compute);
        const CodeSteps steps =
            compute == Compute::kF32 ? CodeSteps{} : FastFormOf(kernels(), shape.head_dim).steps;
        std::vector<float> want;
        std::vector<double> tolerance;
        for (uint32_t row = first; row < first + rows; ++row) {
          const auto one = Exact(t, kScale, row, row + 1);
          const auto bound = AttentionTolerance(t, kScale, row, row + 1, steps);
          want.insert(want.end(), one.begin(), one.end());
          tolerance.insert(tolerance.end(), bound.begin(), bound.end());
        }
        ASSERT_EQ(Mismatch(got, want, tolerance), "") << "compute " << static_cast<int>(compute);
      }
    }
  });
}

// The bound above is for the worst case; typically noise is much lower.
TEST_P(Attention, PromptNoiseIsLow) {
  const uint32_t length = 400, dim = 64, group = 3, first = 360, rows = length - first;
  const KvShape shape{KvType::kF16, 1, dim, 16};
  const Tokens t = MakeStoredTokens(KvType::kF16, length, dim, group, 11);
  PagedHead head(kernels(), shape, length, 5);
  head.Append(t, 0, length);
  std::vector<float> want;
  for (uint32_t row = first; row < length; ++row) {
    const auto one = Exact(t, kScale, row, row + 1);
    want.insert(want.end(), one.begin(), one.end());
  }
  EXPECT_GT(SnrDb(Prompt(head, t, kScale, first, rows, rows, Compute::kFast), want),
            FastFormOf(kernels(), dim).snr_db_min);
  EXPECT_GT(SnrDb(Prompt(head, t, kScale, first, rows, rows, Compute::kF32), want), 110);
}

TEST_P(Attention, ChunkingAPromptChangesNoBit) {
  const uint32_t length = 150;
  for (const uint32_t dim : {64u, 72u}) {
    for (const uint32_t group : {1u, 3u}) {
      for (const Compute compute : {Compute::kFast, Compute::kF32}) {
        const KvShape shape{KvType::kF16, 1, dim, 16};
        const Tokens t = MakeTokens(length, dim, group, 21);
        PagedHead whole(kernels(), shape, length, 5);
        whole.Append(t, 0, length);
        const auto want = Prompt(whole, t, kScale, 0, length, length, compute);
        for (const uint32_t chunk : {1u, 7u, 16u, 64u}) {
          // Pages after the chunk are still empty when it runs.
          PagedHead head(kernels(), shape, length, 8);
          std::vector<float> got;
          for (uint32_t row = 0; row < length; row += chunk) {
            const uint32_t count = std::min(chunk, length - row);
            head.Append(t, row, count);
            const auto rows = Prompt(head, t, kScale, row, count, count, compute);
            got.insert(got.end(), rows.begin(), rows.end());
          }
          EXPECT_TRUE(SameBits(got, want)) << dim << " " << group << " " << chunk;
        }
      }
    }
  }
}

// More rows than one block takes, so that blocks within a call differ from those of the chunks.
TEST_P(Attention, BlocksOfALongCallChangeNoBit) {
  const uint32_t length = 230, dim = 32, group = 2;
  const KvShape shape{KvType::kBF16, 1, dim, 32};
  const Tokens t = MakeTokens(length, dim, group, 23);
  PagedHead head(kernels(), shape, length, 5);
  head.Append(t, 0, length);
  EXPECT_TRUE(SameBits(Prompt(head, t, kScale, 0, length, length, Compute::kFast),
                       Prompt(head, t, kScale, 0, length, 50, Compute::kFast)));
}

TEST_P(Attention, APromptOfOneRowIsADecode) {
  for (const uint32_t length : {1u, 64u, 201u}) {
    const uint32_t dim = 64, group = 3;
    const KvShape shape{KvType::kF16, 1, dim, 32};
    const Tokens t = MakeStoredTokens(KvType::kF16, length, dim, group, length);
    PagedHead head(kernels(), shape, length, 5);
    head.Append(t, 0, length);
    std::vector<OwnedPartial> partial;
    partial.push_back(Decode(head, t, kScale, length - 1, 0, length));
    const auto decoded = Merge(kernels(), partial, group, dim);
    for (const Compute compute : {Compute::kF32, Compute::kFast}) {
      const CodeSteps steps =
          compute == Compute::kF32 ? CodeSteps{} : FastFormOf(kernels(), dim).steps;
      EXPECT_EQ(Mismatch(Prompt(head, t, kScale, length - 1, 1, 1, compute), decoded,
                         AttentionTolerance(t, kScale, length - 1, length, steps)),
                "");
    }
  }
}

// Units of smaller pages are put together; what follows is the same.
TEST_P(Attention, PageSizeChangesNoBit) {
  for (const KvType type : kTypes) {
    for (const uint32_t dim : {16u, 20u, 64u, 66u}) {
      for (const uint32_t length : {3u, 16u, 61u, 64u, 150u}) {
        const Tokens t = MakeStoredTokens(type, length, dim, 3, 71);
        std::vector<std::vector<float>> decoded, prompt;
        for (const uint32_t page_tokens : kPageTokens) {
          PagedHead head(kernels(), {type, 1, dim, page_tokens}, length, 5);
          head.Append(t, 0, length);
          const OwnedPartial partial = Decode(head, t, kScale, length - 1, 0, length);
          decoded.push_back(partial.o);
          decoded.back().insert(decoded.back().end(), partial.m.begin(), partial.m.end());
          decoded.back().insert(decoded.back().end(), partial.d.begin(), partial.d.end());
          prompt.push_back(Prompt(head, t, kScale, 0, length, length, Compute::kFast));
        }
        for (size_t i = 1; i < std::size(kPageTokens); ++i) {
          ASSERT_EQ(decoded[i], decoded[0]) << kPageTokens[i] << " " << dim << " " << length;
          ASSERT_EQ(prompt[i], prompt[0]) << kPageTokens[i] << " " << dim << " " << length;
        }
      }
    }
  }
}

TEST_P(Attention, PartialsOfAnySplitsMergeToTheWhole) {
  const uint32_t length = 300, dim = 64, group = 3, page_tokens = 16;
  const KvShape shape{KvType::kF16, 1, dim, page_tokens};
  const Tokens t = MakeStoredTokens(KvType::kF16, length, dim, group, 31);
  PagedHead head(kernels(), shape, length, 5);
  head.Append(t, 0, length);
  std::vector<OwnedPartial> whole;
  whole.push_back(Decode(head, t, kScale, length - 1, 0, length));
  const auto want = Merge(kernels(), whole, group, dim);
  const auto tolerance = AttentionTolerance(t, kScale, length - 1, length, {});
  Random random(7);
  for (int round = 0; round < 8; ++round) {
    std::vector<OwnedPartial> splits;
    for (uint32_t first = 0; first < length;) {
      const uint32_t pages = 1 + random.Next() % 9;
      const uint32_t end = std::min(length, first + pages * page_tokens);
      // Empty views may stand between: their partials weigh nothing.
      if (random.Next() % 3 == 0) {
        splits.push_back(Decode(head, t, kScale, length - 1, first, first));
      }
      splits.push_back(Decode(head, t, kScale, length - 1, first, end));
      first = end;
    }
    EXPECT_EQ(Mismatch(Merge(kernels(), splits, group, dim), want, tolerance), "");
  }
}

TEST_P(Attention, EmptyPartials) {
  for (const uint32_t dim : {16u, 20u}) {
    const KvShape shape{KvType::kF16, 1, dim, 16};
    const Tokens t = MakeTokens(1, dim, 3, 1);
    PagedHead head(kernels(), shape, 16, 5);
    std::vector<OwnedPartial> partials;
    partials.push_back(Decode(head, t, kScale, 0, 0, 0));
    for (uint32_t h = 0; h < 3; ++h) {
      EXPECT_EQ(partials[0].m[h], -INFINITY);
      EXPECT_EQ(partials[0].d[h], 0.0f);
    }
    EXPECT_EQ(partials[0].o, std::vector<float>(3 * dim));
    partials.push_back(Decode(head, t, kScale, 0, 0, 0));
    EXPECT_EQ(Merge(kernels(), partials, 3, dim), std::vector<float>(3 * dim));
    std::vector<OwnedPartial> none;
    EXPECT_EQ(Merge(kernels(), none, 3, dim), std::vector<float>(3 * dim));
  }
}

// Logits of +-1e4: one key has all the weight, or a few share it; no overflow, no NaN.
// Logits of +-1e4: one key has all the weight, or a few share it; no overflow, no NaN.
TEST_P(Attention, ExtremeLogits) {
  const uint32_t length = 100, dim = 64, group = 2;
  for (const KvType type : kTypes) {
    const KvShape shape{type, 1, dim, 16};
    Tokens t = MakeStoredTokens(type, length, dim, group, 41);
    for (float& value : t.q) value *= 300;
    PagedHead head(kernels(), shape, length, 5);
    head.Append(t, 0, length);
    for (const float scale : {1.0f, 1e-6f}) {
      std::vector<OwnedPartial> got;
      got.push_back(Decode(head, t, scale, length - 1, 0, length));
      EXPECT_EQ(std::fabs(got[0].m[0]) > 1000, scale == 1.0f);
      EXPECT_EQ(Mismatch(Merge(kernels(), got, group, dim), Exact(t, scale, length - 1, length),
                         AttentionTolerance(t, scale, length - 1, length, {})),
                "");
      for (const Compute compute : {Compute::kFast, Compute::kF32}) {
        for (const float value : Prompt(head, t, scale, 0, length, length, compute)) {
          ASSERT_LE(std::fabs(value), 1.01f);  // a mean of values, which lie in -1 .. 1
        }
      }
    }
  }
}

TEST_P(Attention, ZeroQueriesKeysAndValues) {
  const uint32_t length = 70, dim = 32, group = 2;
  const KvShape shape{KvType::kF32, 1, dim, 16};
  Tokens t = MakeTokens(length, dim, group, 51);
  std::fill_n(t.q.begin() + 69 * group * dim, dim, 0.0f);  // one head of the last row
  std::fill_n(t.k.begin() + 5 * dim, dim, 0.0f);
  std::fill_n(t.v.begin() + 6 * dim, dim, 0.0f);
  PagedHead head(kernels(), shape, length, 5);
  head.Append(t, 0, length);
  EXPECT_EQ(
      Mismatch(Prompt(head, t, kScale, 69, 1, 1, Compute::kFast), Exact(t, kScale, 69, length),
               AttentionTolerance(t, kScale, 69, length, FastFormOf(kernels(), dim).steps)),
      "");
}

// The comparator and its tolerances see one wrong value in one of 200 tokens, and one wrong key.
TEST_P(Attention, TheComparisonCanFail) {
  const uint32_t length = 200, dim = 64, group = 2;
  const KvShape shape{KvType::kF16, 1, dim, 16};
  const Tokens t = MakeStoredTokens(KvType::kF16, length, dim, group, 61);
  const auto expected = Exact(t, kScale, length - 1, length);
  const auto tolerance = AttentionTolerance(t, kScale, length - 1, length, {});
  for (const bool wrong_key : {false, true}) {
    Tokens wrong = t;
    std::vector<float>& changed = wrong_key ? wrong.k : wrong.v;
    for (uint32_t c = 0; c < dim; ++c) changed[100 * dim + c] += 0.5f;
    PagedHead head(kernels(), shape, length, 5);
    head.Append(wrong, 0, length);
    std::vector<OwnedPartial> got;
    got.push_back(Decode(head, t, kScale, length - 1, 0, length));
    EXPECT_NE(Mismatch(Merge(kernels(), got, group, dim), expected, tolerance), "") << wrong_key;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Attention, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

}  // namespace
}  // namespace tinyserve
