// Selection over a real cache: all pages chosen is dense attention bit for bit; a page with a
// planted key is found; counts equal a recount; records do not depend on how tokens were appended.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "select/registry.h"
#include "tests/oracles/selection_rig.h"

namespace tinyserve {
namespace {

class Selection : public testing::TestWithParam<const Kernels*> {};

TEST_P(Selection, AllPagesChosenIsDense) {
  // A budget of all pages but one, and of all: the first asks the selector, the second does not.
  for (const char* name : {"box", "moments", "hierarchical", "streaming", "random", "oracle"}) {
    SelectionRig rig(GetParam(), {std::string(name) + ":ratio=1,min_context=0,dense_layers=0"});
    const auto q = Query(3);
    EXPECT_EQ(rig.Decode(1, q, 0), rig.Decode(1, q, 1)) << name;
  }
}

TEST_P(Selection, AllCodedPagesChosenIsDense) {
  for (const char* name : {"box", "moments", "hierarchical", "streaming", "random", "oracle"}) {
    for (const char* codec : {"planes", "int8", "k8v4", "int4"}) {
      SelectionRig rig(GetParam(), {std::string(name) + ":ratio=1,min_context=0", "moments"}, 64, 2,
                       codec);
      // In a window, at its ends, and in the first one, where nothing is coded.
      for (const uint32_t position : {kTokens - 1, 959u, 960u, 64u, 63u, 5u}) {
        const auto q = Query(position);
        EXPECT_EQ(rig.Decode(1, q, 0, position), rig.Decode(1, q, 1, position))
            << name << position << codec;
      }
    }
  }
}

// The box of a channel in a page's record: the range of its keys where those are kept, with some
// room for rounding, else the rows of a box.
struct Interval {
  double low, high;
};
Interval BoxOf(const MetaLayout& layout, const uint8_t* record, uint32_t c) {
  if ((layout.kinds & kMetaRange) != 0) {
    RangeScales scales;
    std::memcpy(&scales, record + layout.spread_at, sizeof scales);
    const uint8_t* codes = record + layout.spread_at + sizeof scales;
    const double middle = double{scales.key_middle} * static_cast<int8_t>(codes[c]);
    const double reach = double{scales.key_reach} * codes[layout.channels + c];
    const double room = 1e-6 * (std::fabs(middle) + reach);
    return {middle - reach - room, middle + reach + room};
  }
  const auto* box = reinterpret_cast<const uint16_t*>(record + layout.box_at);
  return {tinyserve_half(box[c]), tinyserve_half(box[layout.channels + c])};
}
double BoundOf(const MetaLayout& layout, const uint8_t* record, const float* q) {
  double bound = 0;
  for (uint32_t c = 0; c < kHeadDim; ++c) {
    const Interval box = BoxOf(layout, record, c);
    bound += std::max(q[c] * box.low, q[c] * box.high);
  }
  return bound;
}

// Bounds of boxes hold for the keys that attention reads, whatever they are stored as.
TEST_P(Selection, NoKeyExceedsTheBoundOfItsBox) {
  for (const char* codec : {"f32", "f16", "bf16", "planes", "int8", "k8v4", "int4"}) {
    SelectionRig rig(GetParam(), {"box", "moments"}, 64, 2, codec);
    const MetaLayout layout = rig.cache()->meta_layout(0);
    const uint32_t full = kTokens / 64 * 64;
    for (uint32_t head = 0; head < kKvHeads; ++head) {
      const std::vector<float> keys = rig.Keys(1, head);
      const KvSlab records = rig.cache()->records(0, 1, head);
      const PageView view = rig.cache()->View(rig.slot(), 0, full);
      for (uint32_t seed = 0; seed < 5; ++seed) {
        const auto q = Query(50 + seed);
        for (uint32_t p = 0; p < view.count; ++p) {
          const double bound = BoundOf(layout, PageAt(records, view.pages[p]), q.data());
          for (uint32_t t = p * kPageTokens; t < (p + 1) * kPageTokens; ++t)
            ASSERT_LE(SelectionRig::Dot(q.data(), &keys[t * kHeadDim]), bound) << codec << " " << t;
        }
      }
    }
  }
}

// What box promises: a page is read whenever fewer pages than its budget has have a bound as large
// as the page's best q.k.
TEST_P(Selection, BoxMissesNoKeyThatFewBoundsReach) {
  for (const char* codec : {"f16", "planes", "int8", "int4"}) {
    SelectionRig rig(GetParam(), {"box:tokens=256,min_tokens=0,min_context=0"}, 64, 2, codec);
    const uint32_t open = rig.cache()->coded(0) ? 3 : 0, held = kPages - open;
    const uint32_t first = 1, end = open > 0 ? held : held - 2,
                   budget = 16 - 1 - (held - end) - open;
    const MetaLayout layout = rig.cache()->meta_layout(0);
    const std::vector<float> keys = rig.Keys(1, 1);
    const KvSlab records = rig.cache()->records(0, 1, 1);
    const PageView view = rig.cache()->View(rig.slot(), 0, held * kPageTokens - (open > 0 ? 0 : 8));
    for (uint32_t seed = 0; seed < 20; ++seed) {
      const auto q = Query(200 + seed);
      const std::vector<uint32_t> chosen = rig.Chosen(1, 1, q, 1);
      std::vector<double> bound(held, -INFINITY), best(held, -INFINITY);
      for (uint32_t p = first; p < end; ++p) {
        for (uint32_t h = kGroup; h < 2 * kGroup; ++h) {
          const float* x = &q[h * kHeadDim];
          bound[p] = std::max(bound[p], BoundOf(layout, PageAt(records, view.pages[p]), x));
          for (uint32_t t = p * kPageTokens; t < (p + 1) * kPageTokens; ++t)
            best[p] = std::max(best[p], SelectionRig::Dot(x, &keys[t * kHeadDim]));
        }
      }
      for (uint32_t p = first; p < end; ++p) {
        if (std::count(chosen.begin(), chosen.end(), p) == 1) continue;
        const auto rivals =
            std::count_if(bound.begin(), bound.end(), [&](double b) { return b > best[p] - 1e-4; });
        EXPECT_GE(rivals, budget) << codec << " " << p;
      }
    }
  }
}

// At equal budgets no selector's pages have more of the attention than the oracle's.
TEST_P(Selection, OracleHasTheMostAttention) {
  const std::string options = ":ratio=0.2,min_tokens=0,min_context=0";
  for (const char* codec : {"f16", "planes", "k8v4"}) {
    std::vector<std::string> specs;
    for (const char* name : {"oracle", "box", "moments", "hierarchical", "streaming", "random"})
      specs.push_back(name + options);
    SelectionRig rig(GetParam(), specs, 64, 2, codec);
    for (uint32_t seed = 0; seed < 10; ++seed) {
      const auto q = Query(300 + seed);
      const std::vector<double> shares = rig.PageShares(0, 1, q);
      const auto mass = [&](uint32_t selector) {
        double sum = 0;
        for (const uint32_t page : rig.Chosen(0, 1, q, selector)) sum += shares[page];
        return sum;
      };
      const double most = mass(1);
      for (uint32_t selector = 2; selector <= specs.size(); ++selector)
        EXPECT_LE(mass(selector), most + 1e-5) << specs[selector - 1] << " over " << codec;
    }
  }
}

TEST_P(Selection, CountsOverCodedPagesEqualARecount) {
  SelectionRig rig(GetParam(), {"moments:ratio=0.25,min_tokens=0,min_context=0"}, 64, 2, "planes");
  rig.attention()->ResetSelectionCounts();
  rig.Decode(1, Query(7), 1);
  const SelectionCounts c = rig.attention()->selection_counts();
  const uint64_t coded = 60, open = 3, read = 16 - open;  // of 63 pages, round(0.25 * 63) read
  EXPECT_EQ(c.pages_held, kKvHeads * (coded + open));
  EXPECT_EQ(c.pages_scored, kKvHeads * (coded - 1));  // the newest ones are the open ones
  EXPECT_EQ(c.pages_read, kKvHeads * (read + open));
  const uint64_t tokens = read * kPageTokens + kTokens % 64;
  EXPECT_EQ(c.tokens_read, kKvHeads * tokens);
  // A coded page is read with its spread, and scored by its moments alone.
  const uint64_t spread_bytes = sizeof(SpreadScales) + kHeadDim, record_bytes = 2 * kHeadDim * 2;
  const uint64_t page_bytes = rig.cache()->slab(0, 0, 0).page_bytes + spread_bytes;
  const uint64_t open_bytes = open * rig.cache()->open_slab(0, 0, 0).page_bytes;
  EXPECT_EQ(c.bytes_read, kKvHeads * (read * page_bytes + open_bytes + (coded - 1) * record_bytes));
  EXPECT_EQ(c.bytes_held, kKvHeads * (coded * page_bytes + open_bytes));
  EXPECT_EQ(c.multiply_adds, kKvHeads * (tokens + coded - 1) * 2 * kGroup * kHeadDim);
  EXPECT_EQ(c.failures, 0u);
}

TEST_P(Selection, FirstLayersAreDense) {
  SelectionRig rig(GetParam(), {"random:ratio=0.1,min_tokens=0,min_context=0,dense_layers=1"});
  const auto q = Query(4);
  EXPECT_EQ(rig.Decode(0, q, 0), rig.Decode(0, q, 1));
  EXPECT_NE(rig.Decode(1, q, 0), rig.Decode(1, q, 1));
}

TEST_P(Selection, ShortContextsAreDense) {
  SelectionRig rig(GetParam(), {"random:ratio=0.1,min_tokens=0,min_context=1000,dense_layers=0"});
  const auto q = Query(5);
  EXPECT_EQ(rig.Decode(1, q, 0), rig.Decode(1, q, 1));
  EXPECT_EQ(rig.attention()->selection_counts().queries, 0u);
}

// The output with selection follows from the pages: with the planted page it is near the planted
// key's value, which dense attention gives too.
TEST_P(Selection, FindsAPlantedKey) {
  struct Case {
    const char *spec, *codec;
  };
  for (const auto& [spec, codec] :
       {Case{"box:tokens=64", "f16"}, Case{"box:tokens=64,pool=softmax", "f16"},
        Case{"box:tokens=64,pool=sum", "f16"}, Case{"moments:tokens=64", "f16"},
        Case{"moments:tokens=64,pool=max", "f16"}, Case{"hierarchical:tokens=64", "f16"},
        Case{"hierarchical:tokens=96,pool=softmax,sub=8", "planes"},
        Case{"oracle:tokens=64", "f16"}, Case{"box:tokens=96", "planes"},
        Case{"moments:tokens=96", "planes"}, Case{"box:tokens=96", "int4"},
        Case{"oracle:tokens=96", "planes"}}) {
    SelectionRig rig(GetParam(), {std::string(spec) + ",min_tokens=0,min_context=0,dense_layers=0"},
                     64, 2, codec);
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
    EXPECT_LT(std::sqrt(error / norm), 0.02) << spec << " over " << codec;
  }
}

TEST_P(Selection, RandomAndStreamingMissIt) {
  for (const char* spec : {"random:tokens=64", "streaming:tokens=64"}) {
    SelectionRig rig(GetParam(),
                     {std::string(spec) + ",min_tokens=0,min_context=0,dense_layers=0"});
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
  SelectionRig rig(GetParam(), {"moments:ratio=0.25,min_tokens=0,min_context=0,dense_layers=1"});
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
    SelectionRig rig(GetParam(),
                     {"oracle:ratio=1,min_tokens=0,min_context=0,mass=" + std::to_string(mass)});
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
    SelectionRig rig(GetParam(), {"moments:min_context=0," + options});
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
  SelectionRig rig(GetParam(), {"moments:ratio=0.25,min_tokens=0,min_context=0"});
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
  SelectionRig rig(GetParam(), {"streaming:tokens=96,min_tokens=0,min_context=0,dense_layers=0"});
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
  SelectionRig whole(GetParam(), specs, 64), pieces(GetParam(), specs, 7),
      single(GetParam(), specs, 1);
  for (SelectionRig* other : {&pieces, &single}) {
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
// Shadow checks find what a recount from the stored keys finds, at one of the KV heads, and leave
// the output as it is.
TEST_P(Selection, ShadowChecksEqualARecount) {
  const std::string few = ":ratio=0.2,min_tokens=0,min_context=0";
  const std::string cascade = "cascade" + few + ",full=0.02,min_full=4,values=0.05,min_values=8";
  for (const char* codec : {"f16", "f32", "planes"}) {
    std::vector<std::string> specs = {"moments" + few, "streaming" + few};
    if (codec == std::string("planes")) specs.push_back(cascade);
    SelectionRig rig(GetParam(), specs, 64, 2, codec);
    const auto figures = [&](uint32_t selector) {
      const auto& all = rig.attention()->shadow_figures();
      return selector < all.size() ? all[selector] : ShadowFigures();
    };
    for (uint32_t selector = 1; selector <= specs.size(); ++selector) {
      uint32_t checks = 0;
      for (uint32_t seed = 0; seed < 12; ++seed) {
        const auto q = Query(400 + seed);
        rig.attention()->SetShadowShare(0);
        const auto dense = rig.Decode(0, q, 0), plain = rig.Decode(0, q, selector);
        rig.attention()->SetShadowShare(1);
        const ShadowFigures before = figures(selector);
        EXPECT_EQ(rig.Decode(0, q, selector), plain);
        const ShadowFigures after = figures(selector);
        if (after.missed_mass.count() == before.missed_mass.count()) continue;  // in another layer
        ++checks;
        const auto added = [](const LogHistogram& to, const LogHistogram& from) {
          return to.mean() * static_cast<double>(to.count()) -
                 from.mean() * static_cast<double>(from.count());
        };
        const double missed = added(after.missed_mass, before.missed_mass);
        const double error = added(after.output_error, before.output_error);
        bool found = false;
        for (uint32_t head = 0; head < kKvHeads; ++head) {
          double difference = 0, norm = 0;
          const uint32_t width = kGroup * kHeadDim;
          for (uint32_t c = head * width; c < (head + 1) * width; ++c) {
            difference += std::pow(double{plain[c]} - dense[c], 2);
            norm += std::pow(double{dense[c]}, 2);
          }
          double expected = missed;  // the cascade's kernel keeps its pages to itself
          if (specs[selector - 1] != cascade) {
            const std::vector<double> shares = rig.PageShares(0, head, q);
            double read = 0;
            for (const uint32_t page : rig.Chosen(0, head, q, selector)) read += shares[page];
            for (uint32_t page = 60; codec == std::string("planes") && page < kPages; ++page)
              read += shares[page];
            expected = 1 - read / kGroup;
          }
          found |= std::abs(missed - expected) < 1e-4 &&
                   std::abs(error - std::sqrt(difference / norm)) < 1e-4;
        }
        EXPECT_TRUE(found) << codec << " " << specs[selector - 1] << " " << missed << " " << error;
        EXPECT_GT(missed, 0);
      }
      EXPECT_GT(checks, 0u);
    }
  }
}

TEST_P(Selection, PluginEqualsBuiltIn) {
  ASSERT_EQ(LoadSelectorPlugin(TS_SKELETON_SELECTOR).message(), "");
  ASSERT_EQ(LoadSelectorPlugin(TS_SKELETON_SELECTOR).message(), "");  // again: nothing happens
  const std::string options = "ratio=0.2,min_tokens=0,min_context=0,dense_layers=0";
  SelectionRig rig(GetParam(), {"box:pool=max," + options, "skeleton:" + options});
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

// One sub-page of all tokens is the page, and its box the page's.
TEST_P(Selection, HierarchicalOverWholePagesIsBox) {
  const std::string options = "ratio=0.2,min_tokens=0,min_context=0";
  for (const char* pool : {"max", "sum", "softmax"}) {
    const std::string own = options + ",pool=" + pool;
    SelectionRig rig(GetParam(), {"box:" + own, "hierarchical:sub=16,reuse=1," + own}, 7);
    uint32_t same = 0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
      const auto q = Query(400 + seed);
      same += rig.Chosen(1, 0, q, 1) == rig.Chosen(1, 0, q, 2) ? 1 : 0;
    }
    // Softmaxes are rounded differently, so a page may differ where two all but tie.
    EXPECT_GE(same, std::string(pool) == "softmax" ? 18u : 20u) << pool;
  }
}

// Smaller boxes bound their keys as well, and never wider than the page's.
TEST_P(Selection, BoundsOfSubPagesLieBetweenTheirKeysAndTheBox) {
  for (const char* codec : {"f16", "planes"}) {
    SelectionRig rig(GetParam(), {"box", "hierarchical:sub=4"}, 64, 2, codec);
    const MetaLayout layout = rig.cache()->meta_layout(0);
    const std::vector<float> keys = rig.Keys(1, 1);
    const PageView view = rig.cache()->View(rig.slot(), 0, kTokens / 64 * 64);
    const auto bound = [&](const std::vector<float>& q, const uint8_t* record) {
      const auto* box = reinterpret_cast<const uint16_t*>(record);
      double sum = 0;
      for (uint32_t c = 0; c < kHeadDim; ++c) {
        sum += std::max(double{q[c]} * tinyserve_half(box[c]),
                        double{q[c]} * tinyserve_half(box[layout.channels + c]));
      }
      return sum;
    };
    for (uint32_t seed = 0; seed < 5; ++seed) {
      const auto q = Query(60 + seed);
      for (uint32_t t = 0; t < view.count * kPageTokens; ++t) {
        const uint32_t page = view.pages[t / kPageTokens];
        const double whole = bound(q, PageAt(rig.cache()->records(0, 1, 1), page) + layout.box_at);
        const double part = bound(q, PageAt(rig.cache()->summaries(0, 1, 1), page) +
                                         t % kPageTokens / 4 * (4 * kHeadDim));
        ASSERT_LE(SelectionRig::Dot(q.data(), &keys[t * kHeadDim]), part) << codec << " " << t;
        ASSERT_LE(part, whole + 1e-9) << codec << " " << t;
      }
    }
  }
}

// The selection in force at a position was made at the last multiple of `reuse`, or where the run
// of positions began if that is later; newer pages join it.
TEST_P(Selection, HierarchicalChoosesAnewEveryFewPositions) {
  SelectionRig rig(GetParam(), {"hierarchical:tokens=160,min_tokens=0,min_context=0,reuse=4"});
  rig.attention()->ResetSelectionCounts();
  SelectionCounts before;
  const auto step = [&](uint32_t position) {
    rig.Decode(0, Query(position), 1, position);
    const SelectionCounts c = rig.attention()->selection_counts();
    struct {
      bool anew;
      uint64_t read, kept, followed;
    } did{.anew = c.pages_scored > before.pages_scored,
          .read = (c.pages_read - before.pages_read) / kKvHeads,
          .kept = c.pages_reused - before.pages_reused,
          .followed = c.pages_followed - before.pages_followed};
    before = c;
    return did;
  };
  EXPECT_TRUE(step(950).anew);  // the first one
  for (const uint32_t position : {951u, 953u, 954u, 955u, 957u, 958u, 959u}) {
    if (position % 4 == 1) {
      EXPECT_TRUE(step(position - 1).anew) << position - 1;
    }
    const auto did = step(position);
    EXPECT_FALSE(did.anew) << position;
    EXPECT_EQ(did.kept, did.followed) << position;
    EXPECT_EQ(did.read, 9u) << position;  // one of ten is left for a page to come
  }
  EXPECT_TRUE(step(960).anew);  // a multiple of 4, and the first token of a page
  EXPECT_FALSE(step(961).anew);
  EXPECT_TRUE(step(963).anew);  // a gap
  EXPECT_EQ(before.failures, 0u);
}

TEST_P(Selection, PluginWithSummariesEqualsHierarchical) {
  ASSERT_EQ(LoadSelectorPlugin(TS_SUBPAGE_SELECTOR).message(), "");
  const std::string options = "ratio=0.2,min_tokens=0,min_context=0";
  SelectionRig rig(GetParam(), {"hierarchical:sub=4,reuse=1," + options, "subpage:" + options});
  uint32_t same = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const auto q = Query(500 + seed);
    same += rig.Decode(1, q, 1) == rig.Decode(1, q, 2) ? 1 : 0;
  }
  EXPECT_GE(same, 38u);  // sums are rounded differently
  EXPECT_EQ(rig.attention()->selection_counts().failures, 0u);
}

// What no bound promises is measured: how often the page of a key that one of two heads looks for,
// planted among random ones, is found. Of 20: box 8, moments 12, hierarchical 15; chance 2.
TEST_P(Selection, MostPlantedKeysAreFound) {
  const std::string options = ":tokens=160,min_tokens=0,min_context=0";
  struct Floor {
    const char* name;
    uint32_t found;  // of 20
  };
  for (const Floor& floor : {Floor{"box", 7}, Floor{"moments", 11}, Floor{"hierarchical", 14}}) {
    SelectionRig rig(GetParam(), {floor.name + options});
    uint32_t found = 0;
    for (uint32_t seed = 0; seed < 20; ++seed) {
      std::vector<float> q = Query(600 + seed);
      std::vector<float> key(q.begin(), q.begin() + kHeadDim);
      for (float& f : key) f *= 1.2f;
      const uint32_t token = 40 + seed * 41;
      rig.PlantKey(token, key.data());
      const std::vector<uint32_t> chosen = rig.Chosen(1, 0, q, 1);
      found += std::count(chosen.begin(), chosen.end(), token / kPageTokens) == 1 ? 1 : 0;
    }
    EXPECT_GE(found, floor.found) << floor.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Selection, testing::ValuesIn(AvailableTargets()),
                         [](const auto& test) {
                           std::string name = test.param->name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace tinyserve
