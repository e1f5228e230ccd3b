// Pages that are not read count through their means (rest=mean): held against plain sums over the
// stored keys and values; nothing where everything is read; exact where the keys of a page are
// equal; the same bits however rows and threads are grouped; counted.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/oracles/selection_rig.h"

namespace tinyserve {
namespace {

const std::string kFew = ":ratio=0.2,min_tokens=0,min_context=0";
constexpr const char* kSelectors[] = {"box", "moments", "hierarchical", "streaming", "oracle"};

// |a - b| / |b|
double ErrorOf(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(double{a[i]} - b[i], 2);
    norm += std::pow(double{b[i]}, 2);
  }
  return std::sqrt(difference / norm);
}

// Sums of exp(logit) and exp(logit) * value for one query head.
struct Sums {
  double d = 0;
  std::vector<double> o = std::vector<double>(kHeadDim);

  void Add(const float* q, const double* k, const double* v, double tokens) {
    double dot = 0;
    for (uint32_t c = 0; c < kHeadDim; ++c) dot += q[c] * k[c];
    const double weight = tokens * std::exp(kScale * dot);
    d += weight;
    for (uint32_t c = 0; c < kHeadDim; ++c) o[c] += weight * v[c];
  }
};

// What the last position's output should be: tokens of the pages `read` and of those that are not
// coded, and the others' means.
std::vector<float> Expected(SelectionRig* rig, uint32_t tokens, const std::vector<float>& q) {
  std::vector<float> out(q.size());
  const uint32_t end = rig->cache()->coded(0) ? rig->cache()->RawBegin(tokens - 1) : tokens;
  for (uint32_t head = 0; head < kKvHeads; ++head) {
    const std::vector<uint32_t> read = rig->Chosen(1, head, q, 1);
    const auto as_double = [](const std::vector<float>& x) {
      return std::vector<double>(x.begin(), x.end());
    };
    const std::vector<double> keys = as_double(rig->Keys(1, head));
    const std::vector<double> values = as_double(rig->Values(1, head));
    for (uint32_t h = head * kGroup; h < (head + 1) * kGroup; ++h) {
      Sums sums;
      const float* x = &q[h * kHeadDim];
      for (uint32_t first = 0; first < tokens; first += kPageTokens) {
        const uint32_t last = std::min(first + kPageTokens, tokens);
        if (first >= end || std::count(read.begin(), read.end(), first / kPageTokens) == 1) {
          for (uint32_t t = first; t < last; ++t)
            sums.Add(x, &keys[t * kHeadDim], &values[t * kHeadDim], 1);
          continue;
        }
        std::vector<double> k(kHeadDim), v(kHeadDim);
        for (uint32_t t = first; t < last; ++t) {
          for (uint32_t c = 0; c < kHeadDim; ++c) {
            k[c] += keys[t * kHeadDim + c] / kPageTokens;
            v[c] += values[t * kHeadDim + c] / kPageTokens;
          }
        }
        sums.Add(x, k.data(), v.data(), kPageTokens);
      }
      for (uint32_t c = 0; c < kHeadDim; ++c)
        out[h * kHeadDim + c] = static_cast<float>(sums.o[c] / sums.d);
    }
  }
  return out;
}

class RestMeansOver : public testing::TestWithParam<const Kernels*> {};

TEST_P(RestMeansOver, EqualsPlainSums) {
  struct Case {
    const char* codec;
    double error;  // of means in f16, and of 8-bit queries and weights over codes
    uint32_t tokens;
  };
  // 4500 tokens: more means than one split has.
  for (const auto& [codec, error, tokens] :
       {Case{"f32", 2e-3, kTokens}, Case{"f16", 2e-3, kTokens}, Case{"bf16", 2e-3, kTokens},
        Case{"planes", 2e-3, kTokens}, Case{"int8", 0.03, kTokens}, Case{"k8v4", 0.03, kTokens},
        Case{"int4", 0.03, kTokens}, Case{"f16", 2e-3, 4500}, Case{"planes", 2e-3, 4500}}) {
    for (const char* name : kSelectors) {
      if (tokens > kTokens && name != std::string("streaming")) continue;
      SelectionRig rig(GetParam(), {name + kFew + ",rest=mean"}, 64, 2, codec, tokens);
      const auto q = Query(11);
      EXPECT_LT(ErrorOf(rig.Decode(1, q, 1, tokens - 1), Expected(&rig, tokens, q)), error)
          << name << " " << codec << " " << tokens;
    }
  }
}

TEST_P(RestMeansOver, AllPagesChosenIsDense) {
  for (const char* name : kSelectors) {
    for (const char* codec : {"f16", "planes", "int8"}) {
      SelectionRig rig(GetParam(), {std::string(name) + ":ratio=1,min_context=0,rest=mean"}, 64, 2,
                       codec);
      for (const uint32_t position : {kTokens - 1, 959u, 64u, 5u}) {
        const auto q = Query(position);
        EXPECT_EQ(rig.Decode(1, q, 0, position), rig.Decode(1, q, 1, position))
            << name << position << codec;
      }
    }
  }
}

// A page of equal keys is what its means say, be its values what they may.
TEST_P(RestMeansOver, PagesOfEqualKeysLoseNothing) {
  for (const char* codec : {"f32", "f16", "planes"}) {
    SelectionRig rig(GetParam(), {"random" + kFew, "random" + kFew + ",rest=mean"}, 64, 2, codec);
    std::vector<float> k = SelectionRig::Random(1, 1);
    const uint32_t row = kKvHeads * kHeadDim;
    for (uint32_t t = 0; t < kTokens; ++t)
      std::copy_n(&k[t / kPageTokens * kPageTokens * row], row, &k[t * row]);
    rig.SetTokens(k, SelectionRig::Random(2, 1));
    const auto q = Query(12), dense = rig.Decode(1, q, 0);
    EXPECT_GT(ErrorOf(rig.Decode(1, q, 1), dense), 0.2) << codec;
    EXPECT_LT(ErrorOf(rig.Decode(1, q, 2), dense), 2e-3) << codec;
  }
}

// Rows in one step, whole by one thread each, and alone, cut into splits.
TEST_P(RestMeansOver, GroupingOfRowsAndThreadsChangesNoBit) {
  constexpr uint32_t kRows = 12, kFirst = 950;
  for (const char* codec : {"f16", "planes", "int8"}) {
    const std::vector<std::string> specs = {"moments" + kFew + ",rest=mean"};
    SelectionRig two(GetParam(), specs, 64, 2, codec), one(GetParam(), specs, 7, 1, codec);
    std::vector<float> q, out(kRows * kHeads * kHeadDim);
    for (uint32_t row = 0; row < kRows; ++row) {
      const auto of_row = Query(500 + row);
      q.insert(q.end(), of_row.begin(), of_row.end());
    }
    const SequenceRun run{.slot = two.slot(),
                          .first_row = 0,
                          .rows = kRows,
                          .first_position = kFirst,
                          .token_class = TokenClass::kGenerated,
                          .selector = 1};
    two.attention()->Plan({&run, 1});
    const uint32_t stride = kHeads * kHeadDim;
    two.attention()->Run(1, q.data(), stride, out.data(), stride);
    for (uint32_t row = 0; row < kRows; ++row) {
      const auto of_row = Query(500 + row);
      const std::vector<float> in_step(&out[row * stride], &out[row * stride] + stride);
      EXPECT_EQ(two.Decode(1, of_row, 1, kFirst + row), in_step) << codec << row;
      EXPECT_EQ(one.Decode(1, of_row, 1, kFirst + row), in_step) << codec << row;
    }
  }
}

TEST_P(RestMeansOver, MeansDoNotDependOnTheChunks) {
  for (const char* codec : {"f16", "int8"}) {
    const std::vector<std::string> specs = {"hierarchical", "box:rest=mean"};
    SelectionRig whole(GetParam(), specs, 64, 2, codec), single(GetParam(), specs, 1, 2, codec);
    const PageView view = whole.cache()->View(whole.slot(), 0, kTokens / 64 * 64);
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      const KvSlab a = whole.cache()->summaries(0, 1, head);
      const KvSlab b = single.cache()->summaries(0, 1, head);
      for (uint32_t page = 0; page < view.count; ++page) {
        ASSERT_EQ(
            std::memcmp(PageAt(a, view.pages[page]), PageAt(b, view.pages[page]), a.page_bytes), 0)
            << page << codec;
      }
    }
  }
}

TEST_P(RestMeansOver, CountsEqualARecount) {
  for (const char* codec : {"f16", "planes"}) {
    SelectionRig rig(GetParam(), {"streaming" + kFew, "streaming" + kFew + ",rest=mean"}, 64, 2,
                     codec);
    const auto counts = [&](uint32_t selector) {
      rig.attention()->ResetSelectionCounts();
      rig.Decode(1, Query(7), selector);
      return rig.attention()->selection_counts();
    };
    const SelectionCounts none = counts(1), means = counts(2);
    const uint64_t unread = none.pages_held - none.pages_read;
    EXPECT_EQ(unread, uint64_t{kKvHeads} * (63 - 13)) << codec;  // round(0.2 * 63) are read
    EXPECT_EQ(means.pages_read, none.pages_read) << codec;
    EXPECT_EQ(means.bytes_read, none.bytes_read + unread * 2 * kHeadDim * 2) << codec;
    EXPECT_EQ(means.multiply_adds, none.multiply_adds + unread * 2 * kGroup * kHeadDim) << codec;
    EXPECT_EQ(means.bytes_held, none.bytes_held) << codec;
    // Two rows of f16 a page, in whole lines.
    EXPECT_EQ(rig.cache()->kept().summary_bytes, 2u * kHeadDim * 2) << codec;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, RestMeansOver, testing::ValuesIn(AvailableTargets()),
                         [](const auto& test) {
                           std::string name = test.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace tinyserve
