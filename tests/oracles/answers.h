// Requests to an engine, and what their events say.
#ifndef TINYSERVE_TESTS_ORACLES_ANSWERS_H_
#define TINYSERVE_TESTS_ORACLES_ANSWERS_H_

#include <gtest/gtest.h>

#include <latch>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

struct Answer {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs, prompt_logprobs, embedding;
  FinishReason finish = FinishReason::kNone;
  Status status;
  Usage usage;
  std::map<uint32_t, int> prefilled;  // how often each count was told
  int finished_events = 0;
};

inline EventSink CollectInto(Answer* answer) {
  return [answer](const TokenEvent& event) {
    answer->text += event.text;
    if (event.kind == TokenEvent::Kind::kToken) {
      answer->tokens.push_back(event.token);
      answer->logprobs.push_back(event.logprob);
    } else if (event.kind == TokenEvent::Kind::kPrefill) {
      ++answer->prefilled[event.done];
    } else if (event.kind == TokenEvent::Kind::kFinished) {
      answer->finish = event.finish;
      answer->status = event.status;
      answer->usage = event.usage;
      answer->prompt_logprobs = event.prompt_logprobs;
      answer->embedding = event.embedding;
      ++answer->finished_events;
    }
  };
}

// Holds up the engine's thread at the first event until the test has done what must come before the
// answer ends: a tiny model may be done sooner.
inline EventSink HoldUntil(std::latch* done, EventSink sink) {
  return [done, sink = std::move(sink)](const TokenEvent& event) {
    done->wait();
    sink(event);
  };
}

inline Answer Ask(Engine* engine, const Request& request) {
  Answer answer;
  const auto id = engine->Submit(request, CollectInto(&answer));
  EXPECT_TRUE(id.ok()) << id.status().message();
  if (id.ok()) engine->Wait(*id);
  return answer;
}

// A cascade that leaves something out of the short contexts of tiny models.
constexpr char kTinyCascade[] =
    "cascade:ratio=0.3,min_tokens=0,min_context=0,full=0.1,min_full=4,values=0.3,min_values=8,"
    "wide_layers=0";

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_ORACLES_ANSWERS_H_
