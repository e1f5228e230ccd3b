// What spectators see of a request is what it reads, and its text does not depend on them.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <string_view>
#include <thread>
#include <vector>

#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

std::unique_ptr<Engine> Open(const char* selector, const char* kv) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 1;
  options.context_tokens = 256;
  options.sequences_max = 4;
  options.selector = selector;
  options.kv = kv;
  return *Engine::Open(options);
}

Request LongRequest(const char* client) {
  Request request;
  for (int32_t t = 0; t < 150; ++t) request.prompt.push_back(t * 7 % 200);
  request.max_tokens = 100;
  request.ignore_eos = true;
  request.client = client;
  return request;
}

// What is seen once `tokens` are in the sequence, the sink asking while it runs.
struct Seen {
  std::vector<PageReads> reads;
  Answer answer;
};

Seen Watch(Engine* engine, RequestId request, const char* spectator = "c") {
  Seen seen;
  const EventSink collect = CollectInto(&seen.answer);
  const auto id = engine->Submit(LongRequest("c"), [&](const TokenEvent& event) {
    collect(event);
    if (event.kind != TokenEvent::Kind::kToken) return;
    PageReads reads = engine->WatchPages(spectator, request);
    if (reads.request != 0) seen.reads.push_back(std::move(reads));
  });
  engine->Wait(*id);
  return seen;
}

TEST(PageWatch, SeesWhatTheSelectorReads) {
  for (const auto& [selector, kv] :
       {std::pair("box:ratio=0.3,min_tokens=0,min_context=0", "f16"), {kTinyCascade, "planes"}}) {
    SCOPED_TRACE(selector);
    auto engine = Open(selector, kv);
    const Answer alone = Ask(engine.get(), LongRequest("c"));
    engine = Open(selector, kv);
    const Seen seen = Watch(engine.get(), 0);
    EXPECT_EQ(seen.answer.tokens, alone.tokens);
    ASSERT_GT(seen.reads.size(), 80u);
    uint64_t read = 0, held = 0;
    for (const PageReads& r : seen.reads) {
      EXPECT_EQ(r.page_tokens, 16u);
      EXPECT_EQ(r.selector, engine->info().selector);
      ASSERT_EQ(r.running.size(), 1u);
      EXPECT_EQ(r.running[0].prompt_tokens, 150u);
      const uint32_t pages = (r.tokens + 15) / 16;
      ASSERT_EQ(r.bits.size(), r.layers * r.kv_heads * ((pages + 63) / 64));
      for (const uint64_t bits : r.bits) {
        EXPECT_EQ(bits >> pages, 0u);
        EXPECT_NE(bits >> (pages - 1), 0u) << "the newest page is always read";
        read += static_cast<uint64_t>(std::popcount(bits));
        held += pages;
      }
    }
    EXPECT_EQ(seen.reads.back().tokens, 249u);
    EXPECT_LT(read, held * 3 / 4);
    EXPECT_GT(read, held / 10);
  }
}

// Usage is held against a count of the bits of every token.
TEST(PageWatch, UsageTellsAsManyPagesAsAreSeen) {
  for (const auto& [selector, kv] : {std::pair("full", "f16"),
                                     {"box:ratio=0.3,min_tokens=0,min_context=0", "f16"},
                                     {"box:ratio=0.3,min_tokens=0,min_context=180", "int8"},
                                     {kTinyCascade, "planes"}}) {
    SCOPED_TRACE(selector);
    auto engine = Open(selector, kv);
    engine->WatchPages("c", 0);  // so that the first token that reads is seen, too
    const Seen seen = Watch(engine.get(), 0);
    ASSERT_EQ(seen.reads.size(), 99u);  // the first one comes from the prompt
    uint64_t read = 0, held = 0, reused = 0, followed = 0;
    for (size_t t = 0; t < seen.reads.size(); ++t) {
      const PageReads& now = seen.reads[t];
      held += uint64_t{now.layers} * now.kv_heads * ((now.tokens + 15) / 16);
      for (size_t i = 0; i < now.bits.size(); ++i) {
        read += static_cast<uint64_t>(std::popcount(now.bits[i]));
        if (t == 0) continue;
        ASSERT_EQ(now.bits.size(), seen.reads[t - 1].bits.size());
        followed += static_cast<uint64_t>(std::popcount(now.bits[i]));
        reused += static_cast<uint64_t>(std::popcount(now.bits[i] & seen.reads[t - 1].bits[i]));
      }
    }
    const SelectionStats& told = seen.answer.usage.reads;
    EXPECT_EQ(told.pages_held, held);
    EXPECT_EQ(told.pages_read, read);
    if (std::string_view(selector) == "full") {
      EXPECT_EQ(told.pages_read, told.pages_held);
      const uint64_t strips = uint64_t{seen.reads[0].layers} * seen.reads[0].kv_heads;
      EXPECT_EQ(told.bytes_read, held * 16 * engine->info().kv_bytes_per_token / strips);
      EXPECT_EQ(told.bytes_held, told.bytes_read);
      EXPECT_EQ(told.pages_followed, 0u);
    } else {
      EXPECT_LT(told.bytes_read, told.bytes_held);
    }
    if (std::string_view(selector).find("min_context=0") != std::string_view::npos &&
        std::string_view(kv) == "f16") {
      EXPECT_EQ(told.pages_followed, followed);
      EXPECT_EQ(told.pages_reused, reused);
    }
  }
}

// What one request is told does not depend on those that run beside it.
TEST(PageWatch, UsageIsOfTheRequestAlone) {
  const char* const selectors[] = {"full", "box:ratio=0.2,min_tokens=0,min_context=0",
                                   "box:ratio=0.6,min_tokens=0,min_context=0"};
  std::vector<Answer> alone(3), together(3);
  const auto request = [&](size_t i) {
    Request r = LongRequest("c");
    r.selector = selectors[i];
    r.prompt[0] = static_cast<int32_t>(i);  // nothing is shared
    r.max_tokens = 30 + 20 * static_cast<uint32_t>(i);
    return r;
  };
  for (size_t i = 0; i < 3; ++i) {
    auto engine = Open("box:ratio=0.3,min_tokens=0,min_context=0", "f16");
    alone[i] = Ask(engine.get(), request(i));
  }
  auto engine = Open("box:ratio=0.3,min_tokens=0,min_context=0", "f16");
  std::vector<RequestId> ids;
  for (size_t i = 0; i < 3; ++i)
    ids.push_back(*engine->Submit(request(i), CollectInto(&together[i])));
  for (const RequestId id : ids) engine->Wait(id);
  uint64_t selected = 0;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(together[i].usage.reads.pages_read, alone[i].usage.reads.pages_read) << i;
    EXPECT_EQ(together[i].usage.reads.bytes_read, alone[i].usage.reads.bytes_read) << i;
    EXPECT_EQ(together[i].usage.reads.pages_reused, alone[i].usage.reads.pages_reused) << i;
    EXPECT_GT(together[i].usage.reads.pages_read, 0u) << i;
    if (i > 0) selected += together[i].usage.reads.pages_read;
  }
  EXPECT_EQ(engine->stats().selection.pages_read, selected);
}

TEST(PageWatch, WithoutASelectorEverythingIsRead) {
  auto engine = Open("full", "f16");
  const Seen seen = Watch(engine.get(), 0);
  ASSERT_GT(seen.reads.size(), 80u);
  for (const PageReads& r : seen.reads) {
    const uint32_t pages = (r.tokens + 15) / 16;
    for (const uint64_t bits : r.bits) EXPECT_EQ(bits, (uint64_t{1} << pages) - 1);
  }
}

TEST(PageWatch, ShowsTheRequestThatIsAskedForToItsClientAlone) {
  auto engine = Open("full", "f16");
  EXPECT_TRUE(Watch(engine.get(), 99).reads.empty());
  EXPECT_TRUE(Watch(engine.get(), 0, "another").reads.empty());
  const Seen third = Watch(engine.get(), 3);
  ASSERT_GT(third.reads.size(), 80u);
  for (const PageReads& r : third.reads) EXPECT_EQ(r.request, 3u);
}

}  // namespace
}  // namespace tinyserve
