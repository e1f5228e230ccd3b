// Page selection of every target that this machine has, `ref` too: records bit for bit, scores
// against arithmetic in double.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "kernels/attention_testing.h"
#include "kernels/coded_testing.h"
#include "kernels/tables.h"
#include "kernels/targets.h"
#include "tensor/convert.h"

namespace tinyserve {
namespace {

using namespace testing;

constexpr KvType kTypes[] = {KvType::kF32, KvType::kF16, KvType::kBF16};
constexpr uint32_t kDims[] = {1, 15, 16, 33, 64, 66, 80, 96, 128, 256};
constexpr uint32_t kDimMax = 1024;  // that scores take
constexpr uint32_t kPageTokens[] = {4, 8, 16, 32, 64};
constexpr ScoreKind kScoreKinds[] = {ScoreKind::kBox, ScoreKind::kMoments};
constexpr ScorePool kPools[] = {ScorePool::kMax, ScorePool::kSum, ScorePool::kSoftmax};
constexpr uint32_t kBothKinds = kMetaBox | kMetaMoments;
constexpr float kF16Max = 65504.0f;
constexpr double kUlp = 0x1p-24;
constexpr uint8_t kUntouched = 0xff;
constexpr float kAlpha = 2.0f;

std::set<std::string>& TargetsRun() {
  static std::set<std::string> run;
  return run;
}

// Keys of several sizes, zeros of both signs, channels far off zero, and constant ones.
Tokens MakeKeys(uint32_t tokens, uint32_t head_dim, uint32_t group, uint64_t seed) {
  Tokens t{tokens, head_dim, group, {}, {}, {}};
  t.k = RandomFloats(size_t{tokens} * head_dim, seed);
  t.v = RandomFloats(size_t{tokens} * head_dim, seed + 1);
  t.q = RandomFloats(size_t{group} * head_dim, seed + 2);
  for (size_t i = 0; i < t.k.size(); ++i) {
    const size_t c = i % head_dim;
    if (c % 7 == 3) t.k[i] += 6;
    if (c % 11 == 5) t.k[i] = -t.k[i] * 1e-6f;
    if (c % 13 == 6) t.k[i] = -3.25f;
    if (c % 5 == 0 && i % 3 == 0) t.k[i] = i % 2 == 0 ? 0.0f : -0.0f;
  }
  return t;
}

// Records of the pages of one KV head, spread over extents as the pages are.
class Records {
 public:
  Records(const PagedHead& head, uint32_t tokens_max, uint32_t kinds)
      : head_(head),
        layout_(MetaLayoutOf(kinds, head.shape().head_dim)),
        extents_(tokens_max / head.shape().page_tokens / 2 + 2),
        bytes_(extents_ * Stride()) {
    std::memset(bytes_.data(), kUntouched, extents_ * Stride());
    slab_ = {.base = bytes_.data(),
             .extent_stride = Stride(),
             .extent_shift = 1,
             .page_bytes = layout_.record_bytes,
             .v_offset = 0};
  }

  void Summarise(uint32_t page) {
    TargetsRun().insert(head_.kernels().name);
    const SummariseArgs args{.shape = head_.shape(),
                             .slab = head_.slab(),
                             .records = slab_,
                             .layout = layout_,
                             .page = page};
    head_.kernels().summarise_page(&args);
  }
  void SummariseAll(const PageView& view) {
    for (uint32_t i = 0; i < view.count; ++i) Summarise(view.pages[i]);
  }

  uint16_t Bits(uint32_t page, MetaKind kind, uint32_t row, uint32_t c) const {
    const uint32_t at = kind == kMetaBox ? layout_.box_at : layout_.moments_at;
    uint16_t bits;
    std::memcpy(&bits, PageAt(slab_, page) + at + 2 * (row * layout_.channels + c), 2);
    return bits;
  }
  double Value(uint32_t page, MetaKind kind, uint32_t row, uint32_t c) const {
    return F16ToF32(Bits(page, kind, row, c));
  }
  std::vector<uint8_t> AllBytes() const {
    return std::vector<uint8_t>(bytes_.data(), bytes_.data() + extents_ * Stride());
  }
  const MetaLayout& layout() const { return layout_; }
  const KvSlab& slab() const { return slab_; }
  const PagedHead& head() const { return head_; }

 private:
  uint64_t Stride() const { return 2ull * layout_.record_bytes + 64; }

  const PagedHead& head_;
  MetaLayout layout_;
  uint64_t extents_;
  Buffer bytes_;
  KvSlab slab_;
};

struct Scoring {
  ScoreKind kind;
  ScorePool pool;
};

// Scores of `pages` by `group` heads at q. Empty where memory around the results was written.
std::vector<float> Score(const Records& records, const Scoring& scoring, const float* q,
                         uint32_t group, const std::vector<uint32_t>& pages) {
  const auto count = static_cast<uint32_t>(pages.size());
  Scratch scratch(uint64_t{group} * ((count + 15) / 16 * 16) * sizeof(float));
  std::vector<float> scores(count + 16, NAN);
  const ScoreArgs args{.layout = records.layout(),
                       .records = records.slab(),
                       .kind = scoring.kind,
                       .pool = scoring.pool,
                       .alpha = kAlpha,
                       .head_dim = records.head().shape().head_dim,
                       .group = group,
                       .q = q,
                       .pages = pages.data(),
                       .count = count,
                       .head_scores = static_cast<float*>(scratch.data()),
                       .scores = scores.data()};
  records.head().kernels().score_pages(&args);
  TargetsRun().insert(records.head().kernels().name);
  for (uint32_t i = count; i < scores.size(); ++i) {
    if (!std::isnan(scores[i])) return {};
  }
  if (scratch.Overrun()) return {};
  scores.resize(count);
  return scores;
}

// A page's score by one head from its record, in double, and how far f32 arithmetic may be from it:
// a sum of n rounded products, and a root that halves its argument's relative error.
struct Expected {
  double score, tolerance;
};
Expected ExactScore(const Records& records, ScoreKind kind, const float* q, uint32_t page) {
  const uint32_t dim = records.head().shape().head_dim;
  const double rounding = (dim + 16) * kUlp;
  double sum = 0, magnitude = 0, variance = 0;
  for (uint32_t c = 0; c < dim; ++c) {
    if (kind == ScoreKind::kBox) {
      const double low = q[c] * records.Value(page, kMetaBox, 0, c);
      const double high = q[c] * records.Value(page, kMetaBox, 1, c);
      sum += std::max(low, high);
      magnitude += std::fabs(std::max(low, high));
    } else {
      const double mean = q[c] * records.Value(page, kMetaMoments, 0, c);
      sum += mean;
      magnitude += std::fabs(mean);
      variance += double{q[c]} * q[c] * records.Value(page, kMetaMoments, 1, c);
    }
  }
  const double spread = kind == ScoreKind::kBox ? 0 : kAlpha * std::sqrt(variance);
  return {sum + spread, rounding * (magnitude + 2 * spread) + 1e-30};
}

// `count` of the pages in a scattered order, some several times.
std::vector<uint32_t> SomePages(const std::vector<uint32_t>& from, uint32_t count, uint64_t seed) {
  Random random(seed);
  std::vector<uint32_t> pages(count);
  for (uint32_t& page : pages) page = from[random.Next() % from.size()];
  return pages;
}

class Selection : public ::testing::TestWithParam<const Kernels*> {
 protected:
  const Kernels& kernels() const { return *GetParam(); }
};

// ---- records -----------------------------------------------------------------------------------

TEST_P(Selection, RecordsEqualRefs) {
  for (const KvType type : kTypes) {
    for (const uint32_t dim : kDims) {
      for (const uint32_t page_tokens : kPageTokens) {
        for (const uint32_t kinds : {+kMetaBox, +kMetaMoments, kBothKinds}) {
          const KvShape shape{type, 1, dim, page_tokens};
          const uint32_t tokens = 3 * page_tokens;
          const Tokens t = MakeKeys(tokens, dim, 1, dim + page_tokens);
          PagedHead head(kernels(), shape, tokens, 1), plain(*RefKernels(), shape, tokens, 1);
          head.Append(t, 0, tokens);
          plain.Append(t, 0, tokens);
          Records got(head, tokens, kinds), want(plain, tokens, kinds);
          got.SummariseAll(head.View(0, tokens));
          want.SummariseAll(plain.View(0, tokens));
          ASSERT_EQ(got.AllBytes(), want.AllBytes())
              << static_cast<int>(type) << " " << dim << " " << page_tokens << " " << kinds;
        }
      }
    }
  }
}

// The box holds the keys that read_token gives, and no f16 inside of it would.
TEST_P(Selection, BoxesAreTheTightestThatHoldTheStoredKeys) {
  for (const KvType type : kTypes) {
    for (const uint32_t dim : kDims) {
      const KvShape shape{type, 1, dim, 32};
      const Tokens t = MakeKeys(64, dim, 1, dim);
      PagedHead head(kernels(), shape, 64, 3);
      head.Append(t, 0, 64);
      Records records(head, 64, kBothKinds);
      const PageView view = head.View(0, 64);
      records.SummariseAll(view);
      for (uint32_t c = 0; c < dim; ++c) {
        float low = INFINITY, high = -INFINITY;
        for (uint32_t token = 32; token < 64; ++token) {
          low = std::min(low, head.Read(token)[c]);
          high = std::max(high, head.Read(token)[c]);
        }
        const uint16_t low_bits = records.Bits(view.pages[1], kMetaBox, 0, c);
        const uint16_t high_bits = records.Bits(view.pages[1], kMetaBox, 1, c);
        ASSERT_LE(F16ToF32(low_bits), low);
        ASSERT_GE(F16ToF32(high_bits), high);
        const auto above = static_cast<uint16_t>(low > 0 ? low_bits + 1 : low_bits - 1);
        const auto below = static_cast<uint16_t>(high < 0 ? high_bits + 1 : high_bits - 1);
        if (low_bits % 0x8000 != 0) {
          ASSERT_GT(F16ToF32(above), low) << dim << " " << c;
        }
        if (high_bits % 0x8000 != 0) {
          ASSERT_LT(F16ToF32(below), high) << dim << " " << c;
        }
      }
    }
  }
}

// Values that f16 holds stay as they are; others move outward, over zero and denormals too.
TEST_P(Selection, BoxesRoundOutward) {
  struct Rounding {
    float key, low, high;
  };
  const float tiny = 0x1p-24f;  // the least f16 above 0
  const Rounding cases[] = {{1.0f, 1.0f, 1.0f},
                            {-2.5f, -2.5f, -2.5f},
                            {0.0f, 0.0f, 0.0f},
                            {-0.0f, 0.0f, 0.0f},
                            {1.0f + 0x1p-13f, 1.0f, 1.0f + 0x1p-10f},
                            {-1.0f - 0x1p-13f, -1.0f - 0x1p-10f, -1.0f},
                            {1e-9f, 0.0f, tiny},
                            {-1e-9f, -tiny, 0.0f},
                            {3.5f * tiny, 3 * tiny, 4 * tiny},
                            {kF16Max, kF16Max, kF16Max},
                            {65000.0f, 64992.0f, 65024.0f},
                            {1e6f, kF16Max, kF16Max},
                            {-1e6f, -kF16Max, -kF16Max},
                            {INFINITY, kF16Max, kF16Max}};
  const auto dim = static_cast<uint32_t>(std::size(cases));
  const KvShape shape{KvType::kF32, 1, dim, 16};
  Tokens t = MakeKeys(16, dim, 1, 1);
  for (size_t i = 0; i < t.k.size(); ++i) t.k[i] = cases[i % dim].key;
  PagedHead head(kernels(), shape, 16, 3);
  head.Append(t, 0, 16);
  Records records(head, 16, kMetaBox);
  const PageView view = head.View(0, 16);
  records.SummariseAll(view);
  for (uint32_t c = 0; c < dim; ++c) {
    EXPECT_EQ(records.Value(view.pages[0], kMetaBox, 0, c), cases[c].low) << cases[c].key;
    EXPECT_EQ(records.Value(view.pages[0], kMetaBox, 1, c), cases[c].high) << cases[c].key;
  }
}

TEST_P(Selection, MomentsAreThoseOfTheStoredKeys) {
  for (const KvType type : kTypes) {
    for (const uint32_t page_tokens : kPageTokens) {
      const uint32_t dim = 66, tokens = 2 * page_tokens;
      const KvShape shape{type, 1, dim, page_tokens};
      const Tokens t = MakeKeys(tokens, dim, 1, page_tokens);
      PagedHead head(kernels(), shape, tokens, 3);
      head.Append(t, 0, tokens);
      Records records(head, tokens, kMetaMoments);
      const PageView view = head.View(0, tokens);
      records.SummariseAll(view);
      for (uint32_t c = 0; c < dim; ++c) {
        double mean = 0, largest = 0, variance = 0;
        for (uint32_t i = page_tokens; i < tokens; ++i) {
          mean += double{head.Read(i)[c]} / page_tokens;
          largest = std::max(largest, std::fabs(double{head.Read(i)[c]}));
        }
        for (uint32_t i = page_tokens; i < tokens; ++i) {
          variance += std::pow(head.Read(i)[c] - mean, 2) / page_tokens;
        }
        // A sum of page_tokens values in f32, then half a step of f16 or of its denormals.
        const double off = largest * page_tokens * kUlp;
        const double half = 0x1p-11, denormal = 0x1p-25;
        EXPECT_NEAR(records.Value(view.pages[1], kMetaMoments, 0, c), mean,
                    off + half * std::fabs(mean) + denormal);
        EXPECT_NEAR(records.Value(view.pages[1], kMetaMoments, 1, c), variance,
                    off * off + variance * (half + 2 * page_tokens * kUlp) + denormal);
      }
    }
  }
}

// Whatever a page holds, NaN aside, its record is finite: f16 pages overflow to infinity.
TEST_P(Selection, RecordsAreFinite) {
  for (const KvType type : kTypes) {
    const KvShape shape{type, 1, 64, 16};
    Tokens t = MakeKeys(16, 64, 1, 1);
    for (size_t i = 0; i < t.k.size(); ++i) t.k[i] *= i % 64 % 3 == 0 ? 1e30f : 1e4f;
    PagedHead head(kernels(), shape, 16, 3);
    head.Append(t, 0, 16);
    Records records(head, 16, kBothKinds);
    const PageView view = head.View(0, 16);
    records.SummariseAll(view);
    for (uint32_t c = 0; c < 64; ++c) {
      for (const uint32_t row : {0u, 1u}) {
        EXPECT_TRUE(std::isfinite(records.Value(view.pages[0], kMetaBox, row, c))) << c;
        EXPECT_TRUE(std::isfinite(records.Value(view.pages[0], kMetaMoments, row, c))) << c;
      }
    }
    for (const ScoreKind kind : kScoreKinds) {
      const auto got = Score(records, {kind, ScorePool::kSoftmax}, t.q.data(), 1, {view.pages[0]});
      EXPECT_EQ(got, std::vector<float>{1.0f});
    }
  }
}

// Holds the records of coded pages against the keys that these are decoded to.
void CheckCodedRecords(const Kernels& kernels, KvType type) {
  for (const uint32_t dim : {1u, 15u, 64u, 66u, 128u}) {
    const Tokens t = MakeKeys(48, dim, 1, dim);
    SealedHead head(kernels, t, KvType::kF16, 5, kBothKinds, type);
    const Tokens decoded = head.Decoded();
    const MetaLayout& layout = head.layout();
    for (uint32_t page = 0; page < head.pages(); ++page) {
      const auto spread = head.SpreadBytes(page);
      head.Summarise(page);
      ASSERT_EQ(head.SpreadBytes(page), spread);
      const auto value = [&](uint32_t at, uint32_t row, uint32_t c) {
        uint16_t bits;
        std::memcpy(&bits, head.Record(page) + at + 2 * (row * layout.channels + c), 2);
        return F16ToF32(bits);
      };
      for (uint32_t c = 0; c < dim; ++c) {
        float low = INFINITY, high = -INFINITY;
        double mean = 0, variance = 0;
        for (uint32_t i = 0; i < 16; ++i) {
          const float k = decoded.k[(page * 16 + i) * uint64_t{dim} + c];
          low = std::min(low, k);
          high = std::max(high, k);
          mean += k / 16.0;
        }
        for (uint32_t i = 0; i < 16; ++i)
          variance += std::pow(decoded.k[(page * 16 + i) * uint64_t{dim} + c] - mean, 2) / 16;
        const double top = std::max(std::fabs(low), std::fabs(high)),
                     step = top * 0x1p-10 + 0x1p-24;
        // Kernels that decode whole pages may round otherwise than read_token does.
        ASSERT_LE(value(layout.box_at, 0, c), low + top * 4 * kUlp) << dim << " " << c;
        ASSERT_GE(value(layout.box_at, 0, c), low - step);
        ASSERT_GE(value(layout.box_at, 1, c), high - top * 4 * kUlp);
        ASSERT_LE(value(layout.box_at, 1, c), high + step);
        ASSERT_NEAR(value(layout.moments_at, 0, c), mean, step);
        ASSERT_NEAR(value(layout.moments_at, 1, c), variance,
                    variance * 1e-3 + top * top * 1e-5 + 1e-7);
      }
    }
  }
}

// Of a coded page: for the keys that it is decoded to. Its spread stays.
TEST_P(Selection, RecordsOfCodedPagesAreOfTheDecodedKeys) {
  for (const KvType type : {KvType::kPlanes, KvType::kInt8, KvType::kK8V4, KvType::kInt4})
    CheckCodedRecords(kernels(), type);
}

// Pages within ranges need no box of their own: their scores are those of the ranges, and no key
// that they are decoded to exceeds them.
TEST_P(Selection, RangesAreTheBoxesOfPagesThatKeepThem) {
  for (const KvType type : {KvType::kInt8, KvType::kK8V4, KvType::kInt4}) {
    for (const uint32_t dim : {1u, 15u, 64u, 66u, 128u, 256u}) {
      for (const uint32_t group : {1u, 3u, 7u}) {
        const Tokens t = MakeKeys(30 * 16, dim, group, dim);
        const SealedHead head(kernels(), t, KvType::kF16, 5, 0, type);
        const Tokens decoded = head.Decoded();
        Scratch scratch(uint64_t{group} * 32 * sizeof(float));
        std::vector<float> scores(head.pages());
        const ScoreArgs args{.layout = head.layout(),
                             .records = head.records(),
                             .kind = ScoreKind::kBox,
                             .pool = ScorePool::kMax,
                             .alpha = 0,
                             .head_dim = dim,
                             .group = group,
                             .q = t.q.data(),
                             .pages = head.View().pages,
                             .count = head.pages(),
                             .head_scores = static_cast<float*>(scratch.data()),
                             .scores = scores.data()};
        kernels().score_pages(&args);
        ASSERT_FALSE(scratch.Overrun());
        for (uint32_t page = 0; page < head.pages(); ++page) {
          RangeScales scales;
          std::memcpy(&scales, head.Spread(page), sizeof scales);
          const uint8_t* codes = head.Spread(page) + sizeof scales;
          double best = -INFINITY, tolerance = 0;
          for (uint32_t h = 0; h < group; ++h) {
            double bound = 0, magnitude = 0;
            for (uint32_t c = 0; c < dim; ++c) {
              const double q = t.q[size_t{h} * dim + c];
              const double middle = double{scales.key_middle} * static_cast<int8_t>(codes[c]);
              const double reach = double{scales.key_reach} * codes[head.layout().channels + c];
              bound += q * middle + std::fabs(q) * reach;
              magnitude += std::fabs(q) * (std::fabs(middle) + reach);
            }
            best = std::max(best, bound);
            tolerance = std::max(tolerance, (dim + 16) * kUlp * magnitude + 1e-30);
          }
          ASSERT_NEAR(scores[page], best, tolerance) << dim << " " << group << " " << page;
          for (uint32_t i = page * 16; i < page * 16 + 16; ++i) {
            for (uint32_t h = 0; h < group; ++h) {
              double dot = 0;
              for (uint32_t c = 0; c < dim; ++c) {
                dot += double{t.q[size_t{h} * dim + c]} * decoded.k[size_t{i} * dim + c];
              }
              ASSERT_LE(dot, scores[page] + 2 * tolerance) << dim << " " << group << " " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(Selection, OnlyTheRecordOfThePageIsWritten) {
  for (const uint32_t dim : kDims) {
    const KvShape shape{KvType::kF16, 1, dim, 16};
    const Tokens t = MakeKeys(5 * 16, dim, 1, 9);
    PagedHead head(kernels(), shape, 5 * 16, 4);
    head.Append(t, 0, 5 * 16);
    Records records(head, 5 * 16, kBothKinds);
    const uint32_t page = head.View(0, 5 * 16).pages[2];
    records.Summarise(page);
    const MetaLayout& layout = records.layout();
    const std::vector<uint8_t> bytes = records.AllBytes();
    const auto begin = static_cast<size_t>(PageAt(records.slab(), page) - records.slab().base);
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (i >= begin && i < begin + layout.record_bytes) continue;
      ASSERT_EQ(bytes[i], kUntouched) << i;
    }
    for (const MetaKind kind : {kMetaBox, kMetaMoments}) {
      for (uint32_t c = dim; c < layout.channels; ++c) {
        ASSERT_EQ(records.Bits(page, kind, 0, c), 0) << c;
        ASSERT_EQ(records.Bits(page, kind, 1, c), 0) << c;
      }
    }
  }
}

// ---- scores ------------------------------------------------------------------------------------

// A cache of 40 pages with records of both kinds, and queries of `group` heads.
struct Case {
  static constexpr uint32_t kPages = 40;
  Tokens tokens;
  PagedHead head;
  Records records;

  Case(const Kernels& kernels, KvShape shape, uint32_t group)
      : tokens(MakeKeys(kPages * shape.page_tokens, shape.head_dim, group, shape.head_dim)),
        head(kernels, shape, tokens.tokens, 7),
        records(head, tokens.tokens, kBothKinds) {
    head.Append(tokens, 0, tokens.tokens);
    records.SummariseAll(head.View(0, tokens.tokens));
  }
  const float* Q(uint32_t h) const { return tokens.q.data() + size_t{h} * tokens.head_dim; }
  std::vector<uint32_t> Pages() const {
    const PageView view = head.View(0, tokens.tokens);
    return std::vector<uint32_t>(view.pages, view.pages + view.count);
  }
};

// A box's score is no less than q.k of any of its page's keys, but for the rounding of either sum.
TEST_P(Selection, BoxScoresBoundEveryKey) {
  for (const KvType type : kTypes) {
    for (const uint32_t dim : kDims) {
      const uint32_t page_tokens = 16, group = 2;
      const Case c(kernels(), {type, 1, dim, page_tokens}, group);
      for (uint32_t h = 0; h < group; ++h) {
        const std::vector<float> scores =
            Score(c.records, {ScoreKind::kBox, ScorePool::kMax}, c.Q(h), 1, c.Pages());
        ASSERT_EQ(scores.size(), Case::kPages);
        for (uint32_t i = 0; i < c.tokens.tokens; ++i) {
          const std::vector<float> key = c.head.Read(i);
          double dot = 0, magnitude = 0;
          for (uint32_t channel = 0; channel < dim; ++channel) {
            dot += double{c.Q(h)[channel]} * key[channel];
            magnitude += std::fabs(double{c.Q(h)[channel]} * 8);  // 8: more than any key here
          }
          ASSERT_GE(scores[i / page_tokens], dot - magnitude * (dim + 16) * kUlp)
              << dim << " " << h << " " << i;
        }
      }
    }
  }
}

TEST_P(Selection, HeadScoresAreTheRecords) {
  std::vector<uint32_t> dims(std::begin(kDims), std::end(kDims));
  dims.push_back(kDimMax);
  for (const uint32_t dim : dims) {
    const Case c(kernels(), {KvType::kF16, 1, dim, 32}, 3);
    for (const ScoreKind kind : kScoreKinds) {
      for (uint32_t h = 0; h < 3; ++h) {
        const std::vector<uint32_t> pages = c.Pages();
        const auto got = Score(c.records, {kind, ScorePool::kMax}, c.Q(h), 1, pages);
        std::vector<float> want;
        std::vector<double> tolerance;
        for (const uint32_t page : pages) {
          const Expected exact = ExactScore(c.records, kind, c.Q(h), page);
          want.push_back(static_cast<float>(exact.score));
          tolerance.push_back(exact.tolerance + std::fabs(exact.score) * kUlp);
        }
        ASSERT_EQ(Mismatch(got, want, tolerance), "") << dim << " " << h;
      }
    }
  }
}

// Scores of each head alone, [group][pages].
std::vector<std::vector<float>> HeadScores(const Case& c, ScoreKind kind, uint32_t group,
                                           const std::vector<uint32_t>& pages) {
  std::vector<std::vector<float>> heads;
  for (uint32_t h = 0; h < group; ++h) {
    heads.push_back(Score(c.records, {kind, ScorePool::kMax}, c.Q(h), 1, pages));
  }
  return heads;
}

// In f32 for the largest and the sum, which must be met exactly; softmax in double.
std::vector<float> Pool(ScorePool pool, const std::vector<std::vector<float>>& heads) {
  std::vector<float> pooled = heads[0];
  std::vector<double> shares(pooled.size());
  for (size_t h = 0; h < heads.size(); ++h) {
    const double top = *std::max_element(heads[h].begin(), heads[h].end());
    double sum = 0;
    for (const float score : heads[h]) sum += std::exp(score - top);
    for (size_t i = 0; i < pooled.size(); ++i) {
      shares[i] += std::exp(heads[h][i] - top) / sum;
      if (h == 0) continue;
      pooled[i] =
          pool == ScorePool::kMax ? std::max(pooled[i], heads[h][i]) : pooled[i] + heads[h][i];
    }
  }
  if (pool == ScorePool::kSoftmax) pooled.assign(shares.begin(), shares.end());
  return pooled;
}

constexpr uint32_t kCounts[] = {1, 3, 7, 15, 16, 17, 127, 129, 513};

TEST_P(Selection, ScoresArePooledOverTheGroup) {
  uint32_t turn = 0;
  for (uint32_t group = 1; group <= 16; ++group) {
    const uint32_t dim = kDims[group % std::size(kDims)];
    const Case c(kernels(), {kTypes[group % 3], 1, dim, 16}, group);
    for (const ScoreKind kind : kScoreKinds) {
      for (int i = 0; i < 3; ++i) {
        const uint32_t count = kCounts[turn++ % std::size(kCounts)];
        const std::vector<uint32_t> pages = SomePages(c.Pages(), count, turn);
        const auto heads = HeadScores(c, kind, group, pages);
        SCOPED_TRACE(std::to_string(group) + " heads of " + std::to_string(dim) + ", " +
                     std::to_string(count) + " pages");
        for (const ScorePool pool : kPools) {
          const auto got = Score(c.records, {kind, pool}, c.Q(0), group, pages);
          const auto want = Pool(pool, heads);
          if (pool == ScorePool::kSoftmax) {
            // An exponential to 1e-6 of arguments rounded at a few units, and the sum's rounding.
            std::vector<double> tolerance;
            for (const float share : want) tolerance.push_back(1e-5 * share + 1e-30);
            ASSERT_EQ(Mismatch(got, want, tolerance), "");
          } else {
            ASSERT_TRUE(SameBits(got, want)) << Mismatch(got, want, std::vector<double>(count));
          }
        }
      }
    }
  }
}

// A head's score of a page is a function of the query and the record: the same bits alone and in
// any number of pages.
TEST_P(Selection, APagesScoreIsItsOwn) {
  for (const uint32_t dim : kDims) {
    for (const uint32_t group : {1u, 3u, 7u}) {
      const Case c(kernels(), {KvType::kF16, 1, dim, 16}, group);
      for (const ScoreKind kind : kScoreKinds) {
        const Scoring scoring = {kind, ScorePool::kSum};
        std::map<uint32_t, float> alone;
        for (const uint32_t page : c.Pages()) {
          alone[page] = Score(c.records, scoring, c.Q(0), group, {page}).at(0);
        }
        for (const uint32_t count : kCounts) {
          const std::vector<uint32_t> pages = SomePages(c.Pages(), count, count);
          const std::vector<float> got = Score(c.records, scoring, c.Q(0), group, pages);
          ASSERT_EQ(got.size(), count);
          for (uint32_t i = 0; i < count; ++i) {
            ASSERT_EQ(got[i], alone[pages[i]]) << dim << " " << group << " " << count << " " << i;
          }
        }
      }
    }
  }
}

TEST_P(Selection, ScoringWritesNoRecord) {
  const Case c(kernels(), {KvType::kF16, 1, 80, 16}, 5);
  const std::vector<uint8_t> before = c.records.AllBytes();
  for (const ScorePool pool : kPools) {
    EXPECT_EQ(Score(c.records, {ScoreKind::kBox, pool}, c.Q(0), 5, c.Pages()).size(), Case::kPages);
  }
  EXPECT_EQ(c.records.AllBytes(), before);
}

TEST_P(Selection, NoPagesAreNoWork) {
  const Case c(kernels(), {KvType::kF16, 1, 64, 16}, 3);
  for (const ScorePool pool : kPools) {
    EXPECT_TRUE(Score(c.records, {ScoreKind::kMoments, pool}, c.Q(0), 3, {}).empty());
  }
}

// Zero keys, a zero query, and both: numbers, and all pages alike.
TEST_P(Selection, ZerosScoreAlike) {
  for (const bool zero_keys : {false, true}) {
    Case c(kernels(), {KvType::kF16, 1, 64, 16}, 3);
    if (zero_keys) {
      std::fill(c.tokens.k.begin(), c.tokens.k.end(), 0.0f);
      c.head.Append(c.tokens, 0, c.tokens.tokens);
      for (const uint32_t page : c.Pages()) c.records.Summarise(page);
    }
    for (const bool zero_query : {false, true}) {
      if (!zero_keys && !zero_query) continue;
      if (zero_query) std::fill(c.tokens.q.begin(), c.tokens.q.end(), 0.0f);
      for (const ScoreKind kind : kScoreKinds) {
        for (const ScorePool pool : kPools) {
          const auto got = Score(c.records, {kind, pool}, c.Q(0), 3, c.Pages());
          const float share = pool == ScorePool::kSoftmax ? 3.0f / Case::kPages : 0.0f;
          EXPECT_EQ(Mismatch(got, std::vector<float>(Case::kPages, share),
                             std::vector<double>(Case::kPages, 1e-6)),
                    "");
        }
      }
    }
  }
}

// Scores far apart: shares vanish, and nothing overflows.
TEST_P(Selection, SoftmaxOfDistantScores) {
  Case c(kernels(), {KvType::kF16, 1, 64, 16}, 2);
  for (float& q : c.tokens.q) q *= 1e4f;
  for (const ScoreKind kind : kScoreKinds) {
    const auto heads = HeadScores(c, kind, 2, c.Pages());
    const auto got = Score(c.records, {kind, ScorePool::kSoftmax}, c.Q(0), 2, c.Pages());
    EXPECT_EQ(
        Mismatch(got, Pool(ScorePool::kSoftmax, heads), std::vector<double>(Case::kPages, 1e-4)),
        "");
  }
}

// ---- the tests themselves ----------------------------------------------------------------------

// One key in one channel of one page moves its record, and the comparison of its score sees that.
TEST_P(Selection, TheComparisonCanFail) {
  Case c(kernels(), {KvType::kF16, 1, 64, 16}, 1);
  c.tokens.q[9] = 0.75f;
  const std::vector<uint8_t> before = c.records.AllBytes();
  std::vector<float> want;
  std::vector<double> tolerance;
  for (const ScoreKind kind : kScoreKinds) {
    for (const uint32_t page : c.Pages()) {
      const Expected expected = ExactScore(c.records, kind, c.Q(0), page);
      want.push_back(static_cast<float>(expected.score));
      tolerance.push_back(expected.tolerance);
    }
  }
  c.tokens.k[size_t{17 * 16 + 5} * 64 + 9] += 1.5f;
  c.head.Append(c.tokens, 0, c.tokens.tokens);
  for (const uint32_t page : c.Pages()) c.records.Summarise(page);
  EXPECT_NE(c.records.AllBytes(), before);
  for (const ScoreKind kind : kScoreKinds) {
    const size_t first = kind == ScoreKind::kBox ? 0 : Case::kPages;
    const auto got = Score(c.records, {kind, ScorePool::kMax}, c.Q(0), 1, c.Pages());
    EXPECT_GT(std::fabs(got[17] - want[first + 17]), tolerance[first + 17]);
    EXPECT_LE(std::fabs(got[16] - want[first + 16]), tolerance[first + 16]);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Selection, ::testing::ValuesIn(AvailableTargets()),
                         testing::TargetName());

// The tests fail where a table that this machine can run was never called.
class EveryTargetRan : public ::testing::Environment {
 public:
  void TearDown() override {
    if (::testing::GTEST_FLAG(filter) != "*") return;
    for (const Kernels* table : AvailableTargets()) {
      EXPECT_TRUE(TargetsRun().count(table->name)) << table->name << " was never run";
    }
  }
};
const auto* const kEveryTargetRan = ::testing::AddGlobalTestEnvironment(new EveryTargetRan);

}  // namespace
}  // namespace tinyserve
