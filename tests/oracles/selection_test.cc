// Selection over a real cache: all pages chosen is dense attention bit for bit; a page with a
// planted key is found; counts equal a recount; records do not depend on how tokens were appended.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "attend/attention.h"
#include "kernels/targets.h"
#include "select/registry.h"

namespace tinyserve {
namespace {

constexpr uint32_t kLayers = 2, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kTokens = 1000;
constexpr float kScale = 0.2f;
constexpr uint32_t kGroup = kHeads / kKvHeads, kPageTokens = 16;

// A cache of one sequence of random keys and values, and an attention over it.
class Rig {
 public:
  Rig(const Kernels* kernels, const std::vector<std::string>& specs, uint32_t chunk = 64,
      uint32_t threads = 2)
      : threads_(threads), kernels_(kernels), k_(Random(1, 1)), v_(Random(2, 1)) {
    std::vector<SelectorSpec> parsed;
    uint32_t kinds = 0;
    for (const std::string& spec : specs) {
      parsed.push_back(*ParseSelector(spec));
      kinds |= parsed.back().needs();
    }
    const tinyserve_shape shape{.struct_size = sizeof shape,
                                .layers = kLayers,
                                .kv_heads = kKvHeads,
                                .group = kGroup,
                                .head_dim = kHeadDim,
                                .page_tokens = kPageTokens,
                                .pages_max = kTokens / kPageTokens + 1,
                                .record_kinds = kinds,
                                .record_channels = kHeadDim};
    std::vector<SummaryPlace> places;
    const SelectorNeeds kept = *NeedsOf(parsed, shape, &places);
    const std::vector<LayerGroup> groups = {
        {.layers = kLayers, .kv_heads = kKvHeads, .head_dim = kHeadDim}};
    cache_ = *KvCache::Create(groups,
                              {.codec = *FindCodec("f16"),
                               .page_tokens = kPageTokens,
                               .block_tokens = 32,
                               .memory_bytes = 8 << 20,
                               .sequences_max = 2,
                               .sequence_tokens_max = kTokens,
                               .kept = kept},
                              kernels);
    for (const SelectorSpec& spec : parsed)
      selectors_.push_back(*Selector::Open(spec, shape, *PlaceOf(spec, shape, kept, places)));

    attention_ = *Attention::Create({.group_of_layer = {0, 0},
                                     .heads = kHeads,
                                     .scale = kScale,
                                     .compute = Compute::kFast,
                                     .rows_max = 64},
                                    cache_.get(), kernels, &threads_);
    for (const auto& selector : selectors_) attention_->AddSelector(selector.get());
    slot_ = *cache_->AddSequence();
    EXPECT_TRUE(cache_->Reserve(slot_, kTokens).ok());
    Fill(chunk);
  }

  // Output of one generated token, at the last position or another.
  std::vector<float> Decode(uint32_t layer, const std::vector<float>& q, uint32_t selector,
                            uint32_t position = kTokens - 1) {
    const SequenceRun run{.slot = slot_,
                          .first_row = 0,
                          .rows = 1,
                          .first_position = position,
                          .token_class = TokenClass::kGenerated,
                          .selector = selector};
    attention_->Plan({&run, 1});
    std::vector<float> out(q.size());
    attention_->Run(layer, q.data(), q.size(), out.data(), out.size());
    return out;
  }

  // Overwrites the key of a token in every layer and head, and makes its page's records anew.
  void PlantKey(uint32_t token, const float* key) {
    std::copy(key, key + kHeadDim, &k_[uint64_t{token} * kKvHeads * kHeadDim]);
    std::copy(key, key + kHeadDim, &k_[(uint64_t{token} * kKvHeads + 1) * kHeadDim]);
    Fill(64);
  }

  static std::vector<float> Random(uint32_t seed, float scale) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> x(uint64_t{kTokens} * kKvHeads * kHeadDim);
    for (float& f : x) f = normal(random);
    return x;
  }

  // Each page's share of the attention of the last position, summed over the query heads of a KV
  // head, from the keys as they are stored.
  std::vector<double> PageShares(uint32_t layer, uint32_t kv_head, const std::vector<float>& q) {
    const KvShape shape = cache_->shape(0);
    const KvSlab slab = cache_->slab(0, layer, kv_head);
    const PageView view = cache_->View(slot_, 0, kTokens);
    std::vector<double> shares(view.count);
    std::vector<float> k(kHeadDim), v(kHeadDim);
    for (uint32_t h = kv_head * kGroup; h < (kv_head + 1) * kGroup; ++h) {
      std::vector<double> of_head(view.count);
      for (uint32_t t = 0; t < kTokens; ++t) {
        kernels_->read_token(&shape, PageAt(slab, view.pages[t / kPageTokens]), slab.v_offset,
                             nullptr, t % kPageTokens, k.data(), v.data());
        const double dot = std::inner_product(k.begin(), k.end(), &q[h * kHeadDim], 0.0);
        of_head[t / kPageTokens] += std::exp(kScale * dot);
      }
      const double sum = std::accumulate(of_head.begin(), of_head.end(), 0.0);
      for (uint32_t p = 0; p < view.count; ++p) shares[p] += of_head[p] / sum;
    }
    return shares;
  }

  KvCache* cache() { return cache_.get(); }
  Attention* attention() { return attention_.get(); }
  SequenceSlot slot() const { return slot_; }

 private:
  void Fill(uint32_t chunk) {
    for (uint32_t at = 0; at < kTokens; at += chunk) {
      const SequenceRun run{.slot = slot_,
                            .first_row = 0,
                            .rows = std::min(chunk, kTokens - at),
                            .first_position = at,
                            .token_class = TokenClass::kPrompt};
      attention_->Plan({&run, 1});
      const uint64_t stride = uint64_t{kKvHeads} * kHeadDim;
      for (uint32_t layer = 0; layer < kLayers; ++layer)
        attention_->Append(layer, &k_[at * stride], &v_[at * stride], stride);
    }
  }

  ThreadPool threads_;
  const Kernels* kernels_;
  std::vector<float> k_, v_;  // [token][kv head][channel], the same in every layer
  std::unique_ptr<KvCache> cache_;
  std::vector<std::unique_ptr<Selector>> selectors_;
  std::unique_ptr<Attention> attention_;
  SequenceSlot slot_ = 0;
};

std::vector<float> Query(uint32_t seed) {
  std::vector<float> q = Rig::Random(seed, 1);
  q.resize(kHeads * kHeadDim);
  return q;
}

class Selection : public testing::TestWithParam<const Kernels*> {};

TEST_P(Selection, AllPagesChosenIsDense) {
  // A budget of all pages but one, and of all: the first asks the selector, the second does not.
  for (const char* name : {"box", "moments", "streaming", "random", "oracle"}) {
    Rig rig(GetParam(), {std::string(name) + ":ratio=1,min_context=0,dense_layers=0"});
    const auto q = Query(3);
    EXPECT_EQ(rig.Decode(1, q, 0), rig.Decode(1, q, 1)) << name;
  }
}

TEST_P(Selection, FirstLayersAreDense) {
  Rig rig(GetParam(), {"random:ratio=0.1,min_tokens=0,min_context=0,dense_layers=1"});
  const auto q = Query(4);
  EXPECT_EQ(rig.Decode(0, q, 0), rig.Decode(0, q, 1));
  EXPECT_NE(rig.Decode(1, q, 0), rig.Decode(1, q, 1));
}

TEST_P(Selection, ShortContextsAreDense) {
  Rig rig(GetParam(), {"random:ratio=0.1,min_tokens=0,min_context=1000,dense_layers=0"});
  const auto q = Query(5);
  EXPECT_EQ(rig.Decode(1, q, 0), rig.Decode(1, q, 1));
  EXPECT_EQ(rig.attention()->selection_counts().queries, 0u);
}

// The output with selection follows from the pages: with the planted page it is near the planted
// key's value, which dense attention gives too.
TEST_P(Selection, FindsAPlantedKey) {
  for (const char* spec : {"box:tokens=64", "box:tokens=64,pool=softmax", "box:tokens=64,pool=sum",
                           "moments:tokens=64", "moments:tokens=64,pool=max", "oracle:tokens=64"}) {
    Rig rig(GetParam(), {std::string(spec) + ",min_tokens=0,min_context=0,dense_layers=0"});
    std::vector<float> q = Query(6);
    // Every head looks for the same key.
    for (uint32_t h = 1; h < kHeads; ++h)
      std::copy_n(q.begin(), kHeadDim, q.begin() + h * kHeadDim);
    std::vector<float> key(q.begin(), q.begin() + kHeadDim);
    for (float& f : key) f *= 4;
    rig.PlantKey(457, key.data());
    const auto dense = rig.Decode(1, q, 0), sparse = rig.Decode(1, q, 1);
    double error = 0, norm = 0;
    for (size_t i = 0; i < dense.size(); ++i) {
      error += (dense[i] - sparse[i]) * (dense[i] - sparse[i]);
      norm += dense[i] * dense[i];
    }
    EXPECT_LT(std::sqrt(error / norm), 0.02) << spec;
  }
}

TEST_P(Selection, RandomAndStreamingMissIt) {
  for (const char* spec : {"random:tokens=64", "streaming:tokens=64"}) {
    Rig rig(GetParam(), {std::string(spec) + ",min_tokens=0,min_context=0,dense_layers=0"});
    std::vector<float> q = Query(6);
    for (uint32_t h = 1; h < kHeads; ++h)
      std::copy_n(q.begin(), kHeadDim, q.begin() + h * kHeadDim);
    std::vector<float> key(q.begin(), q.begin() + kHeadDim);
    for (float& f : key) f *= 4;
    rig.PlantKey(457, key.data());
    const auto dense = rig.Decode(1, q, 0), sparse = rig.Decode(1, q, 1);
    double error = 0, norm = 0;
    for (size_t i = 0; i < dense.size(); ++i) {
      error += (dense[i] - sparse[i]) * (dense[i] - sparse[i]);
      norm += dense[i] * dense[i];
    }
    EXPECT_GT(std::sqrt(error / norm), 0.2) << spec;
  }
}

TEST_P(Selection, CountsEqualARecount) {
  Rig rig(GetParam(), {"moments:ratio=0.25,min_tokens=0,min_context=0,dense_layers=1"});
  rig.attention()->ResetSelectionCounts();
  rig.Decode(0, Query(7), 1);
  rig.Decode(1, Query(7), 1);
  const SelectionCounts c = rig.attention()->selection_counts();
  const uint64_t pages = (kTokens + kPageTokens - 1) / kPageTokens;  // 63
  const uint64_t read = 16;                                          // round(0.25 * 63)
  EXPECT_EQ(c.queries, kKvHeads);
  EXPECT_EQ(c.pages_held, kKvHeads * pages);
  EXPECT_EQ(c.pages_scored, kKvHeads * (pages - 3));
  EXPECT_EQ(c.pages_read, kKvHeads * read);
  const uint64_t tokens = (read - 1) * kPageTokens + kTokens % kPageTokens;
  EXPECT_EQ(c.tokens_read, kKvHeads * tokens);
  const uint64_t page_bytes = rig.cache()->slab(0, 0, 0).page_bytes;
  const uint64_t record_bytes = 2 * kHeadDim * 2;
  EXPECT_EQ(c.bytes_read, kKvHeads * (read * page_bytes + (pages - 3) * record_bytes));
  EXPECT_EQ(c.multiply_adds, kKvHeads * (tokens + pages - 3) * 2 * kGroup * kHeadDim);
  EXPECT_EQ(c.bytes_held, kKvHeads * pages * page_bytes);
  EXPECT_EQ(c.failures, 0u);
}

// By mass the oracle reads the fewest pages that have the wanted share of the attention over its
// candidates, as a recount from the stored keys has it.
TEST_P(Selection, ByMassTheFewestPagesAreRead) {
  for (const double mass : {0.25, 0.6, 0.9}) {
    Rig rig(GetParam(), {"oracle:ratio=1,min_tokens=0,min_context=0,mass=" + std::to_string(mass)});
    const auto q = Query(9);
    rig.Decode(1, q, 1);
    uint64_t fewest = 0;
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      std::vector<double> shares = rig.PageShares(1, head, q);
      shares = {shares.begin() + 1, shares.end() - 2};
      std::sort(shares.rbegin(), shares.rend());
      const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
      double reached = 0;
      for (size_t i = 0; reached < mass * sum; ++i, ++fewest) reached += shares[i];
      fewest += 3;
    }
    const SelectionCounts c = rig.attention()->selection_counts();
    EXPECT_NEAR(static_cast<double>(c.pages_read), static_cast<double>(fewest), 1) << mass;
    EXPECT_EQ(c.failures, 0u);
  }
}

// The budget and its floor hold whatever the mass.
TEST_P(Selection, ByMassTheBudgetIsABound) {
  const auto read = [](const std::string& options) {
    Rig rig(GetParam(), {"moments:min_context=0," + options});
    rig.Decode(1, Query(9), 1);
    EXPECT_EQ(rig.attention()->selection_counts().failures, 0u);
    return rig.attention()->selection_counts().pages_read / kKvHeads;
  };
  EXPECT_EQ(read("min_tokens=0,ratio=0.25,mass=0.9999"), 16u);
  EXPECT_EQ(read("min_tokens=320,ratio=0.5,mass=0.0001"), 20u);
  const uint64_t free = read("min_tokens=0,ratio=1,mass=0.6");
  EXPECT_GT(free, 4u);
  EXPECT_LT(free, 60u);
}

TEST_P(Selection, CountsOfLayersAndHeadsEqualARecount) {
  Rig rig(GetParam(), {"moments:ratio=0.25,min_tokens=0,min_context=0"});
  rig.attention()->SetTimed(true);
  rig.attention()->ResetSelectionCounts();
  const uint32_t times[kLayers] = {1, 3};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t i = 0; i < times[layer]; ++i) rig.Decode(layer, Query(20 + i), 1, 900 + 10 * i);
  }
  const std::vector<SelectionCounts> strips = rig.attention()->strip_counts();
  ASSERT_EQ(strips.size(), kLayers * kKvHeads);
  const uint64_t page_bytes = rig.cache()->slab(0, 0, 0).page_bytes, record_bytes = 4 * kHeadDim;
  SelectionCounts sum;
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      uint64_t held = 0, read = 0, tokens = 0;
      for (uint32_t i = 0; i < times[layer]; ++i) {
        const uint64_t seen = 901 + 10 * i, pages = (seen + kPageTokens - 1) / kPageTokens;
        const auto chosen = static_cast<uint64_t>(std::lround(0.25 * static_cast<double>(pages)));
        held += pages;
        read += chosen;
        tokens += (chosen - 1) * kPageTokens + (seen - 1) % kPageTokens + 1;
      }
      const SelectionCounts& c = strips[layer * kKvHeads + head];
      EXPECT_EQ(c.queries, times[layer]);
      EXPECT_EQ(c.pages_held, held);
      EXPECT_EQ(c.pages_scored, held - 3 * times[layer]);
      EXPECT_EQ(c.pages_read, read);
      EXPECT_EQ(c.tokens_read, tokens);
      EXPECT_EQ(c.bytes_held, held * page_bytes);
      EXPECT_EQ(c.bytes_read, read * page_bytes + (held - 3 * times[layer]) * record_bytes);
      EXPECT_GT(c.score_ns, 0u);
      EXPECT_GT(c.select_ns, 0u);
      EXPECT_GT(c.attend_ns, 0u);
      sum.Add(c);
    }
  }
  const SelectionCounts all = rig.attention()->selection_counts();
  EXPECT_EQ(all.queries, sum.queries);
  EXPECT_EQ(all.bytes_read, sum.bytes_read);
  EXPECT_EQ(all.attend_ns, sum.attend_ns);
  rig.attention()->ResetSelectionCounts();
  EXPECT_EQ(rig.attention()->strip_counts()[0].queries, 0u);
}

// The newest pages move on at a page's border; all else of this selector stays.
TEST_P(Selection, HitRateCountsPagesReadBefore) {
  Rig rig(GetParam(), {"streaming:tokens=96,min_tokens=0,min_context=0,dense_layers=0"});
  rig.attention()->ResetSelectionCounts();
  const auto counts_after = [&](uint32_t position) {
    rig.Decode(0, Query(8), 1, position);
    const SelectionCounts c = rig.attention()->selection_counts();
    return std::pair(c.pages_followed, c.pages_reused);
  };
  using Counts = std::pair<uint64_t, uint64_t>;
  EXPECT_EQ(counts_after(957), Counts(0, 0));
  EXPECT_EQ(counts_after(958), Counts(kKvHeads * 6, kKvHeads * 6));
  EXPECT_EQ(counts_after(959), Counts(kKvHeads * 12, kKvHeads * 12));
  EXPECT_EQ(counts_after(960), Counts(kKvHeads * 18, kKvHeads * 17));  // a new page
  EXPECT_EQ(counts_after(962), Counts(kKvHeads * 18, kKvHeads * 17));  // a gap: follows nothing
  EXPECT_EQ(counts_after(963), Counts(kKvHeads * 24, kKvHeads * 23));
}

TEST_P(Selection, RecordsDoNotDependOnTheChunks) {
  const std::vector<std::string> specs = {"box", "moments"};
  Rig whole(GetParam(), specs, 64), pieces(GetParam(), specs, 7), single(GetParam(), specs, 1);
  for (Rig* other : {&pieces, &single}) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t head = 0; head < kKvHeads; ++head) {
        const KvSlab a = whole.cache()->records(0, layer, head);
        const KvSlab b = other->cache()->records(0, layer, head);
        const PageView view = whole.cache()->View(whole.slot(), 0, kTokens);
        for (uint32_t page = 0; page < kTokens / kPageTokens; ++page) {
          ASSERT_EQ(
              std::memcmp(PageAt(a, view.pages[page]), PageAt(b, view.pages[page]), a.page_bytes),
              0)
              << page;
        }
      }
    }
  }
}

// The example's shared object ranks as the built-in box does; their sums are rounded differently,
// so a page may differ where two scores all but tie.
TEST_P(Selection, PluginEqualsBuiltIn) {
  ASSERT_EQ(LoadSelectorPlugin(TS_SKELETON_SELECTOR).message(), "");
  ASSERT_EQ(LoadSelectorPlugin(TS_SKELETON_SELECTOR).message(), "");  // again: nothing happens
  const std::string options = "ratio=0.2,min_tokens=0,min_context=0,dense_layers=0";
  Rig rig(GetParam(), {"box:pool=max," + options, "skeleton:" + options});
  uint32_t same = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const auto q = Query(100 + seed);
    const auto built_in = rig.Decode(1, q, 1), plugin = rig.Decode(1, q, 2);
    same += built_in == plugin;
    EXPECT_NE(plugin, rig.Decode(1, q, 0));
  }
  EXPECT_GE(same, 38u);
  EXPECT_EQ(rig.attention()->selection_counts().failures, 0u);
}

INSTANTIATE_TEST_SUITE_P(Targets, Selection, testing::ValuesIn(AvailableTargets()),
                         [](const auto& test) {
                           std::string name = test.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace tinyserve
