// The embedding API under load: texts that do not depend on the company they keep, refusals that
// say why, cancels and deadlines that give everything back.
#include "tinyserve/engine.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <latch>
#include <mutex>
#include <thread>

#include "base/file.h"
#include "tensor/gguf.h"
#include "tests/oracles/answers.h"

namespace tinyserve {
namespace {

std::unique_ptr<Engine> OpenTiny(void (*change)(EngineOptions*) = nullptr) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.threads = 2;
  options.kv_memory_bytes = 8 << 20;
  options.sequences_max = 4;
  options.step_tokens_max = 32;
  options.context_tokens = 256;
  if (change != nullptr) change(&options);
  auto engine = Engine::Open(options);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return engine.ok() ? *std::move(engine) : nullptr;
}

Request MakeRequest(uint32_t i) {
  Request request;
  for (uint32_t t = 0; t < 5 + 23 * i; ++t)
    request.prompt.push_back(static_cast<int32_t>((t * 7 + i * 13) % 200));
  request.max_tokens = 20;
  request.ignore_eos = true;
  request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
  request.sampling.seed = i;
  request.top_logprobs = 0;
  return request;
}

void ExpectSameAnswersInCompany(Engine* engine) {
  constexpr uint32_t kRequests = 9;  // more than run at once
  std::vector<Answer> alone(kRequests), together(kRequests);
  for (uint32_t i = 0; i < kRequests; ++i) alone[i] = Ask(engine, MakeRequest(i));
  std::vector<RequestId> ids;
  for (uint32_t i = 0; i < kRequests; ++i)
    ids.push_back(*engine->Submit(MakeRequest(i), CollectInto(&together[i])));
  for (RequestId id : ids) engine->Wait(id);
  for (uint32_t i = 0; i < kRequests; ++i) {
    EXPECT_EQ(alone[i].tokens, together[i].tokens) << i;
    EXPECT_EQ(alone[i].logprobs, together[i].logprobs) << i;
    EXPECT_EQ(alone[i].text, together[i].text);
    EXPECT_EQ(together[i].finish, FinishReason::kLength);
    EXPECT_EQ(together[i].finished_events, 1);
    EXPECT_EQ(together[i].usage.completion_tokens, 20u);
  }
  EXPECT_EQ(engine->stats().blocks_used, 0u);
}

TEST(Engine, SameAnswersAloneAndInCompany) {
  ExpectSameAnswersInCompany(OpenTiny().get());
  ExpectSameAnswersInCompany(OpenTiny([](EngineOptions* o) { o->kv = "planes"; }).get());
  ExpectSameAnswersInCompany(OpenTiny([](EngineOptions* o) { o->selector = kTinyCascade; }).get());
}

TEST(Engine, ShadowChecksChangeNothingAndAreToldBySelector) {
  std::vector<Answer> answers;
  for (double share : {0.0, 1.0}) {
    EngineOptions options;
    options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
    options.threads = 2;
    options.context_tokens = 256;
    options.sequences_max = 2;
    options.selector = kTinyCascade;
    options.shadow_check = share;
    auto engine = *Engine::Open(options);
    for (const char* selector : {"", "streaming:ratio=0.1,min_tokens=0,min_context=0"}) {
      Request request = MakeRequest(7);
      request.selector = selector;
      answers.push_back(Ask(engine.get(), request));
    }
    const std::vector<ShadowStats> shadow = engine->stats().shadow;
    ASSERT_EQ(shadow.size(), share == 0 ? 0u : 2u);
    for (const ShadowStats& stats : shadow) {
      EXPECT_EQ(stats.checks, 19u);  // the first token comes from the prompt
      EXPECT_LE(stats.missed_mass.mean, stats.missed_mass.p99);
      EXPECT_LE(stats.missed_mass.p99, stats.missed_mass.max);
      EXPECT_LE(stats.missed_mass.max, 1);
      EXPECT_GT(stats.output_error.mean, 0);
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(answers[i].tokens, answers[i + 2].tokens);
    EXPECT_EQ(answers[i].logprobs, answers[i + 2].logprobs);
  }
}

TEST(Engine, StorageFollowsTheSelectorUnlessItIsChosen) {
  EXPECT_EQ(OpenTiny()->info().kv, "f16");
  EXPECT_EQ(OpenTiny([](EngineOptions* o) { o->selector = "box"; })->info().kv, "f16");
  auto preset = OpenTiny([](EngineOptions* o) { o->selector = "default"; });
  EXPECT_EQ(preset->info().kv, "planes");
  EXPECT_EQ(preset->info().selector.find("cascade:ratio="), 0u);
  auto chosen = OpenTiny([](EngineOptions* o) { o->kv = "f16"; });
  Request request = MakeRequest(1);
  request.selector = "cascade";
  EXPECT_NE(chosen->Submit(request, [](const TokenEvent&) {})
                .status()
                .message()
                .find("selector 'cascade': the KV cache is stored as f16"),
            std::string::npos);
}

// What is kept for selectors that requests may name is planned for, and serves them as if they had
// been the engine's own.
TEST(Engine, MetadataIsKeptForWhatRequestsMayName) {
  constexpr const char* kBox = "box:ratio=0.2,min_tokens=0,min_context=0";
  auto own = OpenTiny([](EngineOptions* o) { o->selector = kBox; });
  auto plain = OpenTiny();
  auto kept = OpenTiny([](EngineOptions* o) { o->metadata = {"box", "moments:rest=mean"}; });
  EXPECT_EQ(kept->info().selector, "full");
  EXPECT_GT(kept->info().kv_bytes_per_token, own->info().kv_bytes_per_token);
  Request request = MakeRequest(7);
  const Answer dense = Ask(kept.get(), request);
  EXPECT_EQ(dense.logprobs, Ask(plain.get(), request).logprobs);
  const Answer expected = Ask(own.get(), request);
  request.selector = kBox;
  const Answer boxed = Ask(kept.get(), request);
  EXPECT_EQ(boxed.tokens, expected.tokens);
  EXPECT_EQ(boxed.logprobs, expected.logprobs);
  EXPECT_NE(boxed.logprobs, dense.logprobs);
  const Status refused = plain->Submit(request, [](const TokenEvent&) {}).status();
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_NE(refused.message().find("as its selector or its metadata"), std::string::npos);
  request.selector = "moments:min_context=0,rest=mean";
  EXPECT_EQ(Ask(kept.get(), request).finish, FinishReason::kLength);
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.metadata = {"cascade"};
  EXPECT_NE(Engine::Open(options).status().message().find("selector 'cascade': the KV cache is"),
            std::string::npos);
}

// Storage of coded pages is planned for, and a request may select among them by what it keeps.
TEST(Engine, CodedPagesArePlannedFor) {
  auto engine = OpenTiny([](EngineOptions* o) { o->kv = "planes"; });
  auto raw = OpenTiny();
  EXPECT_LT(engine->info().kv_bytes_per_token, raw->info().kv_bytes_per_token);
  EXPECT_EQ(engine->info().kv_window_bytes, 64 * raw->info().kv_bytes_per_token);
  EXPECT_EQ(raw->info().kv_window_bytes, 0u);
  EXPECT_LE(engine->info().kv_pool_bytes, 8u << 20);
  Request request = MakeRequest(1);
  request.selector = "streaming:min_context=0";
  EXPECT_EQ(Ask(engine.get(), request).finish, FinishReason::kLength);
  request.selector = "box";
  const Status refused = engine->Submit(request, [](const TokenEvent&) {}).status();
  EXPECT_NE(refused.message().find("selector 'box'"), std::string::npos) << refused.message();
  // So much that the context fits but for the tokens that are not coded yet.
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.kv = "planes";
  options.context_tokens = 256;
  options.kv_memory_bytes = 256 * engine->info().kv_bytes_per_token;
  const Status status = Engine::Open(options).status();
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  EXPECT_NE(status.message().find("bytes of KV cache"), std::string::npos) << status.message();
}

TEST(Engine, PromptLogprobsAreWholeHoweverTheyAreChunked) {
  auto engine = OpenTiny();
  Request request = MakeRequest(6);  // 143 tokens, steps of 32
  request.max_tokens = 0;
  request.prompt_logprobs = true;
  const Answer chunked = Ask(engine.get(), request);
  EXPECT_EQ(chunked.finish, FinishReason::kLength);
  ASSERT_EQ(chunked.prompt_logprobs.size(), request.prompt.size() - 1);
  auto whole_engine = OpenTiny([](EngineOptions* o) { o->step_tokens_max = 256; });
  EXPECT_EQ(Ask(whole_engine.get(), request).prompt_logprobs, chunked.prompt_logprobs);
}

TEST(Engine, StopsWhereItIsTold) {
  auto engine = OpenTiny();
  Request request = MakeRequest(2);
  const Answer free = Ask(engine.get(), request);
  request.stop_tokens = {free.tokens[4]};
  const Answer stopped = Ask(engine.get(), request);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_LE(stopped.tokens.size(), 5u);
  EXPECT_EQ(stopped.tokens.back(), free.tokens[4]);
  request.min_tokens = 10;
  EXPECT_GT(Ask(engine.get(), request).tokens.size(), 10u);
}

TEST(Engine, RefusesWithTheFieldAndTheRange) {
  auto engine = OpenTiny();
  const auto message = [&](void (*change)(Request*)) {
    Request request = MakeRequest(1);
    change(&request);
    return engine->Submit(request, [](const TokenEvent&) {}).status().message();
  };
  EXPECT_NE(message([](Request* r) { r->prompt.clear(); }).find("prompt is empty"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->prompt[0] = -1; }).find("prompt holds token -1"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->prompt[0] = 1 << 30; }).find("prompt holds token"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->max_tokens = 4000000000u; }).find("the context holds 256"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->sampling.top_p = 2; }).find("top_p is 2"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->top_logprobs = 21; }).find("top_logprobs is 21"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->stop = {""}; }).find("stop holds a string of 0 bytes"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->stop_tokens = {-2}; }).find("stop_tokens"),
            std::string::npos);
  EXPECT_NE(message([](Request* r) { r->min_tokens = 21; }).find("min_tokens"), std::string::npos);
  EXPECT_NE(message([](Request* r) { r->selector = "nonsense"; }).find("selector 'nonsense'"),
            std::string::npos);
}

TEST(Engine, RefusesWhatThePoolCanNeverHold) {
  EngineOptions options;
  options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
  options.kv_memory_bytes = 1 << 16;
  options.context_tokens = 256;
  const Status status = Engine::Open(options).status();
  EXPECT_EQ(status.code(), Code::kOutOfMemory);
  EXPECT_NE(status.message().find("bytes of KV cache"), std::string::npos) << status.message();
}

TEST(Engine, OptionsAreChecked) {
  const auto message = [](void (*change)(EngineOptions*)) {
    EngineOptions options;
    options.model_path = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
    change(&options);
    return Engine::Open(options).status().message();
  };
  EXPECT_NE(message([](EngineOptions* o) {
              o->model_path = "/nonexistent.gguf";
            }).find("/nonexistent.gguf"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->kv = "int3"; }).find("f32, f16, bf16"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->compute = "magic"; }).find("fast and f32"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->target = "neon"; }).find("neon"), std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->context_tokens = 1 << 30; }).find("trained for"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->page_tokens = 24; }).find("page_tokens is 24"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->page_tokens = 0; }).find("page_tokens is 0"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->block_tokens = 0; }).find("block_tokens is 0"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) {
              o->kv = "planes";
              o->page_tokens = 32;
            }).find("page_tokens is 32: the KV type planes"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) {
              o->kv = "f32";
              o->selector = "default";
            }).find("selector 'default': the KV cache is stored as f32"),
            std::string::npos);
  EXPECT_NE(message([](EngineOptions* o) { o->sequences_max = 0; }).find("sequences_max is 0"),
            std::string::npos);
}

TEST(Engine, CancelAndDeadlineGiveEverythingBack) {
  auto engine = OpenTiny();
  Answer cancelled, late;
  Request request = MakeRequest(0);
  request.max_tokens = 250;
  std::latch asked(1);
  const RequestId a = *engine->Submit(request, HoldUntil(&asked, CollectInto(&cancelled)));
  request.deadline_ms = 1;
  request.prompt = MakeRequest(8).prompt;
  request.max_tokens = 60;
  const RequestId b = *engine->Submit(request, [collect = CollectInto(&late)](auto& event) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    collect(event);
  });
  EXPECT_TRUE(engine->Cancel(a));
  asked.count_down();
  engine->Wait(a);
  engine->Wait(b);
  EXPECT_EQ(cancelled.finish, FinishReason::kCancelled);
  EXPECT_EQ(late.finish, FinishReason::kDeadline);
  EXPECT_FALSE(engine->Cancel(a));
  engine->Wait(12345);  // unknown: returns at once
  Ask(engine.get(), MakeRequest(1));
  EXPECT_EQ(engine->stats().blocks_used, 0u);
}

// The embedding of one token is NaN; the file is whole otherwise.
class DamagedModel {
 public:
  static constexpr int32_t kToken = 201;  // MakeRequest's are below 200

  DamagedModel() : path_(testing::TempDir() + "damaged.gguf") {
    const std::string source = TS_SOURCE_DIR "/tests/golden/tiny/llama.gguf";
    auto bytes = ReadFile(source, 1 << 20);
    auto file = GgufFile::Open(source);
    EXPECT_TRUE(bytes.ok() && file.ok());
    EXPECT_NE((*file)->FindTensor("output.weight"), nullptr);  // the embedding is not the head too
    const StoredTensor* embedding = (*file)->FindTensor("token_embd.weight");
    const uint64_t row_bytes = embedding->bytes / embedding->rows;
    // Scales of all ones are NaN, in f16 as in f32.
    std::memset(bytes->data() + embedding->offset + kToken * row_bytes, 0xff, row_bytes);
    std::ofstream(path_, std::ios::binary) << *bytes;
  }
  ~DamagedModel() { std::remove(path_.c_str()); }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

void ExpectOnlyTheDamagedEnds(Engine* engine) {
  const Answer before = Ask(engine, MakeRequest(2));
  ASSERT_EQ(before.finish, FinishReason::kLength);
  Request damaged = MakeRequest(3);  // 74 tokens
  damaged.prompt[40] = DamagedModel::kToken;
  Request scored = damaged;
  scored.prompt_logprobs = true;
  for (const Request& request : {damaged, scored}) {
    Answer bad, good;
    const RequestId a = *engine->Submit(request, CollectInto(&bad));
    const RequestId b = *engine->Submit(MakeRequest(2), CollectInto(&good));
    engine->Wait(a);
    engine->Wait(b);
    EXPECT_EQ(bad.finish, FinishReason::kError);
    EXPECT_EQ(bad.finished_events, 1);
    EXPECT_EQ(bad.status.code(), Code::kCorrupt);
    EXPECT_NE(bad.status.message().find("hidden states at positions "), std::string::npos)
        << bad.status.message();
    EXPECT_TRUE(bad.tokens.empty());
    // Neither what ran beside it nor what takes its blocks over afterwards sees a trace.
    for (const Answer& other : {good, Ask(engine, MakeRequest(2))}) {
      EXPECT_EQ(other.finish, FinishReason::kLength);
      EXPECT_TRUE(other.status.ok());
      EXPECT_EQ(other.tokens, before.tokens);
      EXPECT_EQ(other.logprobs, before.logprobs);
    }
  }
  EXPECT_EQ(engine->stats().blocks_used, 0u);
}

TEST(Engine, StatesThatAreNoNumbersEndARequestAndNoOther) {
  const DamagedModel model;
  for (const char* kv : {"f16", "f32"}) {
    for (const char* compute : {"fast", "f32"}) {
      SCOPED_TRACE(kv + std::string(" ") + compute);
      EngineOptions options;
      options.model_path = model.path();
      options.threads = 2;
      options.kv_memory_bytes = 1 << 18;  // little, so that blocks are used again
      options.kv = kv;
      options.compute = compute;
      options.context_tokens = 128;
      auto engine = Engine::Open(options);
      ASSERT_TRUE(engine.ok()) << engine.status().message();
      ExpectOnlyTheDamagedEnds(engine->get());
    }
  }
}

TEST(Engine, ClosingEndsWhatRuns) {
  Answer answers[6];
  {
    auto engine = OpenTiny();
    Request request = MakeRequest(1);
    request.max_tokens = 200;
    for (Answer& answer : answers) ASSERT_TRUE(engine->Submit(request, CollectInto(&answer)).ok());
  }
  for (const Answer& answer : answers) EXPECT_EQ(answer.finished_events, 1);
}

TEST(Engine, TheQueueHasAnEnd) {
  auto engine = OpenTiny([](EngineOptions* o) { o->queue_max = 3; });
  Request request = MakeRequest(1);
  request.max_tokens = 200;
  std::vector<Answer> answers(100);
  uint32_t refused = 0;
  std::vector<RequestId> ids;
  std::latch submitted(1);
  for (Answer& answer : answers) {
    const auto id = engine->Submit(request, HoldUntil(&submitted, CollectInto(&answer)));
    if (id.ok()) {
      ids.push_back(*id);
    } else {
      EXPECT_EQ(id.status().code(), Code::kResourceExhausted);
      ++refused;
    }
  }
  EXPECT_GE(refused, 93u);  // four run and three wait
  for (RequestId id : ids) engine->Cancel(id);
  submitted.count_down();
  for (RequestId id : ids) engine->Wait(id);
}

TEST(Engine, ManyThreadsMaySubmit) {
  auto engine = OpenTiny();
  const Answer expected = Ask(engine.get(), MakeRequest(3));
  std::vector<std::thread> clients;
  std::vector<Answer> answers(8);
  for (Answer& answer : answers) {
    clients.emplace_back([&] { answer = Ask(engine.get(), MakeRequest(3)); });
  }
  for (std::thread& client : clients) client.join();
  for (const Answer& answer : answers) EXPECT_EQ(answer.tokens, expected.tokens);
}

}  // namespace
}  // namespace tinyserve
