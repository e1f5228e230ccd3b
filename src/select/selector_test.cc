#include "select/selector.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>

namespace tinyserve {
namespace {

std::string MessageOf(const std::string& spec) { return ParseSelector(spec).status().message(); }

TEST(ParseSelector, ResolvesEveryOption) {
  EXPECT_EQ(ParseSelector("full")->resolved, "full");
  EXPECT_EQ(
      ParseSelector("box")->resolved,
      "box:ratio=0.3,min_tokens=256,dense_layers=0,sink=1,recent=2,min_context=1024,pool=max");
  EXPECT_EQ(ParseSelector("moments:tokens=800,alpha=3.5,pool=sum,sink=0")->resolved,
            "moments:tokens=800,min_tokens=256,dense_layers=0,sink=0,recent=2,min_context=1024,"
            "pool=sum,alpha=3.5");
  EXPECT_EQ(ParseSelector("oracle:mass=0.9,ratio=1,min_tokens=0")->resolved,
            "oracle:ratio=1,min_tokens=0,dense_layers=0,sink=1,recent=2,min_context=1024,mass=0.9");
  EXPECT_EQ(ParseSelector("streaming:rest=mean")->resolved,
            "streaming:ratio=0.3,min_tokens=256,dense_layers=0,sink=1,recent=2,min_context=1024,"
            "rest=mean");
  EXPECT_EQ(ParseSelector("box:rest=none")->resolved, ParseSelector("box")->resolved);
  // A table may have other defaults of what all have in common.
  EXPECT_EQ(ParseSelector("cascade:full=0.05")->resolved,
            "cascade:ratio=0.32,min_tokens=3072,dense_layers=0,sink=1,recent=2,min_context=128,"
            "full=0.05,min_full=128,values=0.15,min_values=768,wide_layers=1,alpha=1,"
            "least_share=8e-05");
  // A preset is the selector that it stands for.
  EXPECT_EQ(ParseSelector("default")->resolved, ParseSelector("cascade")->resolved);
  EXPECT_EQ(ParseSelector("default")->typed, "default");
  EXPECT_EQ(ParseSelector("default:full=0.05")->resolved,
            ParseSelector("cascade:full=0.05")->resolved);
  const SelectorSpec again = *ParseSelector(ParseSelector("random:seed=7,ratio=0.05")->resolved);
  EXPECT_EQ(again.resolved, ParseSelector("random:seed=7,ratio=0.05")->resolved);
  EXPECT_EQ(again.budget.ratio, 0.05);
}

TEST(ParseSelector, SaysWhatIsAllowed) {
  EXPECT_EQ(MessageOf("boxes"),
            "selector 'boxes': there is no selector 'boxes': full, default, box, moments, cascade, "
            "hierarchical, streaming, random, oracle are known");
  EXPECT_EQ(MessageOf("box:ratio=0"),
            "selector 'box:ratio=0': ratio is '0': allowed is a number from 0.001 to 1");
  EXPECT_EQ(MessageOf("box:recent=0"),
            "selector 'box:recent=0': recent is '0': allowed is a whole number from 1 to 1048576");
  EXPECT_EQ(MessageOf("box:sink=1.5"),
            "selector 'box:sink=1.5': sink is '1.5': allowed is a whole number from 0 to 1048576");
  EXPECT_EQ(MessageOf("box:mass=1"),
            "selector 'box:mass=1': mass is '1': allowed is a number from 0 to 0.9999");
  EXPECT_EQ(MessageOf("box:rest=all"),
            "selector 'box:rest=all': rest is 'all': allowed are none, mean");
  EXPECT_EQ(MessageOf("default:rest=mean"),
            "selector 'default:rest=mean': rest is not for cascade: its kernel has a rest of its "
            "own, the tokens of candidates that give the mean value of their page");
  EXPECT_NE(MessageOf("random:mass=0.9").find("'mass' is no option of it: it has ratio, tokens"),
            std::string::npos);
  EXPECT_EQ(MessageOf("box:pool=mean"),
            "selector 'box:pool=mean': pool is 'mean': allowed are max, sum, softmax");
  EXPECT_EQ(MessageOf("moments:alpha=nan"),
            "selector 'moments:alpha=nan': alpha is 'nan': allowed is a number from 0 to 100");
  EXPECT_NE(MessageOf("box:alpha=2").find("'alpha' is no option of it: it has ratio, tokens"),
            std::string::npos);
  for (const char* spec : {"box:", "box:ratio", "box:=1", "box:ratio=0.1,", "box:,ratio=0.1",
                           "full:ratio=1", "", ":", "box:ratio=0.1,,sink=1", "box:ratio=1e400"}) {
    EXPECT_FALSE(ParseSelector(spec).ok()) << spec;
  }
}

TEST(Hierarchical, SubPagesMustFillAPage) {
  const auto message = [&](const char* spec, uint32_t page_tokens) {
    return SizesOf(*ParseSelector(spec), {.head_dim = 64, .page_tokens = page_tokens})
        .status()
        .message();
  };
  EXPECT_EQ(message("hierarchical:sub=8", 16), "");
  EXPECT_EQ(message("hierarchical:sub=16", 32), "");
  EXPECT_EQ(message("hierarchical:sub=6", 16),
            "selector 'hierarchical:sub=6': sub is 6: allowed are 2, 4, 8 and 16, and no more than "
            "the tokens of a page, 16");
  EXPECT_NE(message("hierarchical:sub=16", 8), "");
  const tinyserve_sizes sizes = *SizesOf(*ParseSelector("hierarchical:sub=4"),
                                         {.head_dim = 80, .page_tokens = 16, .pages_max = 200});
  EXPECT_EQ(sizes.summary_bytes, 4u * 2 * 80 * 2);
  EXPECT_EQ(sizes.state_bytes, 8u + 4 * 8);
  EXPECT_EQ(SizesOf(*ParseSelector("hierarchical:reuse=1"), {.head_dim = 64, .page_tokens = 16})
                ->state_bytes,
            0u);
}

// What a table gives for the cascade is checked whoever wrote the table.
// The engine's own box scores by ranges where a codec keeps them; all else needs what it says.
TEST(Box, NeedsNoBoxWhereRangesAreKept) {
  EXPECT_EQ(ParseSelector("box")->needs(0), kMetaBox);
  EXPECT_EQ(ParseSelector("box")->needs(kMetaSpread), kMetaBox);
  EXPECT_EQ(ParseSelector("box")->needs(kMetaRange), kMetaRange);
  EXPECT_EQ(ParseSelector("moments")->needs(kMetaRange), kMetaMoments);
  EXPECT_EQ(ParseSelector("full")->needs(kMetaRange), 0u);
  tinyserve_selector_v2 other = *ParseSelector("box")->table;
  EXPECT_EQ(ParseSelectorFor(other, "box")->needs(kMetaRange), kMetaBox);
}

TEST(Cascade, ParametersOutOfRangeAreRefused) {
  const tinyserve_shape shape{.struct_size = sizeof(tinyserve_shape)};
  const auto message = [&](const SelectorSpec& spec) {
    return Selector::Open(spec, shape).status().message();
  };
  EXPECT_EQ(message(*ParseSelector("cascade")), "");
  EXPECT_EQ(message(*ParseSelector("cascade:full=0.5,values=0.1")),
            "selector 'cascade:full=0.5,values=0.1': values and min_values must be no less than "
            "full and min_full");
  tinyserve_selector_v2 table = *ParseSelector("cascade")->table;
  table.fused = [](void*, void* parameters, tinyserve_error*) {
    *static_cast<tinyserve_cascade*>(parameters) = {.full = NAN, .values = NAN};
    return 0;
  };
  SelectorSpec spec = *ParseSelector("cascade");
  spec.table = &table;
  EXPECT_EQ(message(spec), "selector 'cascade': full and values must be from 0 to 1");
}

TEST(SelectorBudget, CountsPagesWithTheirFloors) {
  SelectorBudget b;
  EXPECT_EQ(b.PagesOf(500, 16), 150u);
  EXPECT_EQ(b.PagesOf(20, 16), 16u);  // 256 tokens
  EXPECT_EQ(b.PagesOf(10, 16), 10u);
  b.tokens = 100;
  b.min_tokens = 0;
  EXPECT_EQ(b.PagesOf(500, 16), 7u);
  b.sink = 4;
  b.recent = 6;
  EXPECT_EQ(b.PagesOf(500, 16), 10u);
}

// ---- a table that answers as a test says ----

using Answer = std::function<int(const tinyserve_select_item&, tinyserve_select_out*)>;
Answer* g_answer = nullptr;

constexpr tinyserve_selector_v2 kScripted = {
    .abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
    .struct_size = sizeof(tinyserve_selector_v2),
    .name = "scripted",
    .config_schema = R"({"type":"object","properties":{}})",
    .needs = 0,
    .open =
        [](const tinyserve_shape*, const char*, void** self, tinyserve_error*) {
          *self = g_answer;
          return 0;
        },
    .select =
        [](void* self, const tinyserve_select_in* in, uint32_t first, uint32_t,
           tinyserve_select_out* out) {
          return (*static_cast<Answer*>(self))(in->items[first], out);
        },
    .close = [](void*) {},
    .fused_id = 0,
    .fused = nullptr,
    .heeds_mass = 1,
    .sizes = nullptr,
    .summarise = nullptr,
    .observe = nullptr};

struct Chosen {
  std::vector<uint32_t> pages;
  bool failed;
};

// Choice over `count` pages with a budget of 6: one sink, two newest, three candidates.
Chosen Choose(uint32_t count, Answer answer,
              SelectorBudget budget = {.tokens = 96, .min_tokens = 0}) {
  g_answer = &answer;
  SelectorSpec spec;
  spec.table = &kScripted;
  spec.budget = budget;
  const auto selector = Selector::Open(spec, {});
  std::vector<uint32_t> pages(count), chosen(count);
  std::iota(pages.begin(), pages.end(), 1000);
  std::vector<float> scratch(SelectScratchFloats(1, count));
  const Selector::Choice choice = (*selector)->Choose({}, pages, 0, 16, scratch, chosen.data());
  return {.pages = {chosen.begin(), chosen.begin() + choice.pages}, .failed = choice.failed};
}

TEST(Selector, AddsSinksAndNewestPagesInOrder) {
  const Chosen c = Choose(20, [](const tinyserve_select_item& item, tinyserve_select_out* out) {
    EXPECT_EQ(item.first_page, 1u);
    EXPECT_EQ(item.page_count, 17u);
    EXPECT_EQ(item.budget_pages, 3u);
    EXPECT_EQ(item.pages[0], 1001u);
    out->n_pages = 3;
    out->pages[0] = 16;
    out->pages[1] = 0;
    out->pages[2] = 5;
    return 0;
  });
  EXPECT_FALSE(c.failed);
  EXPECT_EQ(c.pages, (std::vector<uint32_t>{0, 1, 6, 17, 18, 19}));
}

// Pages that are not coded yet are the newest ones, and in the budget.
TEST(Selector, OpenPagesAreReadAnyway) {
  SelectorSpec spec;
  spec.table = &kScripted;
  spec.budget = {.tokens = 96, .min_tokens = 0, .sink = 1, .recent = 2};
  std::vector<uint32_t> asked;
  Answer answer = [&](const tinyserve_select_item& item, tinyserve_select_out* out) {
    asked = {item.first_page, item.page_count, item.budget_pages};
    out->n_pages = 1;
    out->pages[0] = item.page_count - 1;
    return 0;
  };
  g_answer = &answer;
  const auto selector = Selector::Open(spec, {});
  std::vector<uint32_t> pages(20), chosen(20);
  std::vector<float> scratch(SelectScratchFloats(1, 20));
  const auto read = [&](uint32_t open_pages) {
    asked.clear();
    const auto choice = (*selector)->Choose({}, pages, open_pages, 16, scratch, chosen.data());
    return std::vector<uint32_t>(chosen.begin(), chosen.begin() + choice.pages);
  };
  using Pages = std::vector<uint32_t>;
  EXPECT_EQ(read(1), (Pages{0, 18, 19}));
  EXPECT_EQ(asked, (Pages{1, 18, 3}));
  EXPECT_EQ(read(4), (Pages{0, 19}));
  EXPECT_EQ(asked, (Pages{1, 19, 1}));
  EXPECT_EQ(read(5), Pages{0});  // the budget is used up
  EXPECT_EQ(read(9), Pages{0});
  EXPECT_EQ(asked, Pages{});
}

TEST(Selector, FewerThanTheBudgetIsFine) {
  const Chosen c = Choose(20, [](const tinyserve_select_item&, tinyserve_select_out* out) {
    out->n_pages = 0;
    return 0;
  });
  EXPECT_FALSE(c.failed);
  EXPECT_EQ(c.pages, (std::vector<uint32_t>{0, 18, 19}));
}

TEST(Selector, ByMassIsAskedWithinItsBounds) {
  const auto ask = [](uint32_t count, const SelectorBudget& budget) {
    std::vector<uint32_t> seen;  // candidates, least, most
    Choose(
        count,
        [&](const tinyserve_select_item& item, tinyserve_select_out* out) {
          seen = {item.page_count, item.least_pages, item.budget_pages};
          EXPECT_EQ(item.mass, 0.75f);
          out->n_pages = 0;
          return 0;
        },
        budget);
    return seen;
  };
  using Seen = std::vector<uint32_t>;
  EXPECT_EQ(ask(20, {.ratio = 0.5, .min_tokens = 80, .mass = 0.75}), (Seen{17, 2, 7}));
  EXPECT_EQ(ask(20, {.ratio = 1, .min_tokens = 0, .mass = 0.75}), (Seen{17, 0, 17}));
  EXPECT_EQ(ask(20, {.tokens = 48, .min_tokens = 48, .mass = 0.75}), Seen{});
  EXPECT_EQ(ask(20, {.ratio = 1, .min_tokens = 320, .mass = 0.75}), Seen{});
  EXPECT_EQ(ask(2, {.ratio = 1, .min_tokens = 0, .mass = 0.75}), Seen{});
}

TEST(Selector, ReadsEverythingAfterAWrongAnswer) {
  std::vector<uint32_t> all(20);
  std::iota(all.begin(), all.end(), 0);
  const auto wrong = [&](const Answer& answer) {
    const Chosen c = Choose(20, answer);
    EXPECT_TRUE(c.failed);
    EXPECT_EQ(c.pages, all);
  };
  const auto pages = [](std::vector<uint32_t> list, uint32_t n) {
    return [=](const tinyserve_select_item&, tinyserve_select_out* out) {
      std::copy(list.begin(), list.end(), out->pages);
      out->n_pages = n;
      return 0;
    };
  };
  wrong([](const tinyserve_select_item&, tinyserve_select_out*) { return 1; });  // an error
  wrong(pages({1, 2, 17}, 3));                                                   // no such page
  wrong(pages({4, 2, 4}, 3));                                                    // twice
  wrong(pages({1, 2, 3}, 4));  // more than was asked for
  wrong(pages({1, 2, 3}, UINT32_MAX));
}

TEST(Selector, ReadsEverythingOnceASummaryFailed) {
  tinyserve_selector_v2 table = kScripted;
  table.sizes = [](const tinyserve_shape* shape, const char*, tinyserve_sizes* sizes,
                   tinyserve_error*) {
    sizes->summary_bytes = shape->head_dim;
    return 0;
  };
  table.summarise = [](void*, const tinyserve_page_in* page, void* summary) {
    static_cast<uint8_t*>(summary)[0] = 7;
    return page->layer == 3 ? 1 : 0;
  };
  Answer answer = [](const tinyserve_select_item&, tinyserve_select_out* out) {
    out->n_pages = 0;
    return 0;
  };
  g_answer = &answer;
  SelectorSpec spec;
  spec.table = &table;
  spec.budget = {.tokens = 96, .min_tokens = 0};
  const auto selector = Selector::Open(spec, {.head_dim = 2});
  ASSERT_TRUE(selector.ok());
  std::vector<uint32_t> pages(20), chosen(20);
  std::vector<float> scratch(SelectScratchFloats(1, 20));
  uint8_t summary[2] = {1, 1};
  const auto read = [&](uint32_t layer) {
    (*selector)->Summarise({.struct_size = sizeof(tinyserve_page_in), .layer = layer}, summary);
    return (*selector)->Choose({}, pages, 0, 16, scratch, chosen.data());
  };
  EXPECT_EQ(read(0).pages, 3u);
  EXPECT_EQ(summary[0], 7);
  EXPECT_EQ(read(3).pages, 20u);
  EXPECT_EQ(summary[0], 0);
  EXPECT_TRUE(read(0).failed);
}

TEST(Selector, SizesOutOfRangeAreRefused) {
  tinyserve_selector_v2 table = kScripted;
  SelectorSpec spec;
  spec.typed = "own";
  spec.table = &table;
  const auto message = [&](uint32_t summary_bytes, uint32_t state_bytes) {
    return SizesOf(spec, {.head_dim = summary_bytes, .pages_max = state_bytes}).status().message();
  };
  table.sizes = [](const tinyserve_shape* shape, const char*, tinyserve_sizes* sizes,
                   tinyserve_error*) {
    sizes->summary_bytes = shape->head_dim;
    sizes->state_bytes = shape->pages_max;
    return 0;
  };
  EXPECT_EQ(message(0, 65536), "");
  EXPECT_EQ(message(1, 0),
            "selector 'own': it wants summaries, but cannot make them: summarise is missing");
  table.summarise = [](void*, const tinyserve_page_in*, void*) { return 0; };
  EXPECT_EQ(message(65536, 0), "");
  EXPECT_EQ(
      message(65537, 3),
      "selector 'own': it wants a summary of 65537 bytes and a state of 3: allowed are 65536");
  table.sizes = [](const tinyserve_shape*, const char*, tinyserve_sizes*, tinyserve_error* error) {
    std::snprintf(error->message, sizeof error->message, "no such shape");
    return 1;
  };
  EXPECT_EQ(message(0, 0), "selector 'own': no such shape");
}

// Selectors have places of their own, those with the same table and options the same one.
TEST(NeedsOf, SummariesOfSeveralLieOneAfterAnother) {
  tinyserve_selector_v2 table = kScripted;
  table.sizes = [](const tinyserve_shape*, const char* config, tinyserve_sizes* sizes,
                   tinyserve_error*) {
    sizes->summary_bytes = config[0] == 'a' ? 100 : 65536;
    sizes->state_bytes = config[0] == 'a' ? 70 : 10;
    return 0;
  };
  table.summarise = [](void*, const tinyserve_page_in*, void*) { return 0; };
  std::vector<SelectorSpec> specs(4);
  for (SelectorSpec& spec : specs) spec.table = &table;
  specs[0].config_json = specs[2].config_json = "a";
  specs[1].config_json = "b";
  specs[3].table = nullptr;
  std::vector<SummaryPlace> places;
  const Result<SelectorNeeds> needs = NeedsOf(specs, {}, &places);
  ASSERT_TRUE(needs.ok());
  EXPECT_EQ(needs->summary_bytes, 128u + 65536u);
  EXPECT_EQ(needs->state_bytes, 128u);
  EXPECT_EQ(PlaceOf(specs[2], {}, *needs, places)->own, 0u);
  EXPECT_EQ(PlaceOf(specs[1], {}, *needs, places)->own, 128u);
  specs[0].config_json = "c";
  EXPECT_FALSE(PlaceOf(specs[0], {}, *needs, places).ok());
  for (char c = 'd'; c < 'h'; ++c) {
    specs.push_back(specs[0]);
    specs.back().config_json = std::string(1, c);
  }
  EXPECT_NE(NeedsOf(specs, {}).status().message().find("allowed are 262144"), std::string::npos);
}

// Means are kept once, whoever reads them, beside summaries.
TEST(NeedsOf, MeansOfPagesAreKeptForThoseThatReadThem) {
  const tinyserve_shape shape{.head_dim = 66, .page_tokens = 16};
  const std::vector<SelectorSpec> specs = {*ParseSelector("hierarchical:sub=8,reuse=1"),
                                           *ParseSelector("box:rest=mean"),
                                           *ParseSelector("moments:rest=mean")};
  std::vector<SummaryPlace> places;
  const SelectorNeeds needs = *NeedsOf(specs, shape, &places);
  const uint32_t own = SizesOf(specs[0], shape)->summary_bytes, lines = (own + 63) / 64 * 64;
  EXPECT_EQ(PageMeansBytes(66), 2u * 80 * 2);
  EXPECT_EQ(needs.summary_bytes, lines + 320);
  EXPECT_EQ(PlaceOf(specs[1], shape, needs, places)->means, lines);
  EXPECT_EQ(PlaceOf(specs[2], shape, needs, places)->means, lines);
  const auto message = [&](const char* spec) {
    return PlaceOf(*ParseSelector(spec), shape, needs, std::span(places).first(1))
        .status()
        .message();
  };
  EXPECT_EQ(message("box"), "");
  EXPECT_EQ(
      message("box:rest=mean"),
      "selector 'box:rest=mean': the mean of the keys and values of pages, which rest=mean "
      "reads, is not kept: choose it when the engine starts, as its selector or its metadata");
}

TEST(Selector, IsNotAskedWhereTheBudgetCoversEverything) {
  const Chosen c = Choose(6, [](const tinyserve_select_item&, tinyserve_select_out*) {
    ADD_FAILURE();
    return 1;
  });
  EXPECT_EQ(c.pages.size(), 6u);
  EXPECT_FALSE(c.failed);
}

}  // namespace
}  // namespace tinyserve
