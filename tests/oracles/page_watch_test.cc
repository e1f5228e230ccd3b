// What spectators see of a request is what it reads, and its text does not depend on them.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <thread>

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
