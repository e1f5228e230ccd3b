// Embeds the engine: one request whose text is printed as it comes, and one cancelled half-way.
//
//   embed model.gguf "The capital of France is"
#include <cstdio>
#include <future>
#include <memory>
#include <string>

#include "tinyserve/engine.h"

namespace {

using tinyserve::Engine;
using tinyserve::FinishReason;
using tinyserve::TokenEvent;

int Fail(const tinyserve::Status& status) {
  std::fprintf(stderr, "embed: %s\n", status.message().c_str());
  return 1;
}

// A request that prints its text while it comes. Sinks run on the engine's own thread, so they only
// hand things over: here to standard output, and to `finished`.
tinyserve::EventSink PrintTo(std::promise<TokenEvent>* finished) {
  return [finished](const TokenEvent& event) {
    std::fputs(event.text.c_str(), stdout);
    if (event.kind == TokenEvent::Kind::kFinished) finished->set_value(event);
  };
}

int Answer(Engine* engine, const tinyserve::Request& request) {
  std::promise<TokenEvent> finished;
  const auto id = engine->Submit(request, PrintTo(&finished));
  if (!id.ok()) return Fail(id.status());
  const TokenEvent last = finished.get_future().get();
  if (last.finish == FinishReason::kError) return Fail(last.status);
  std::printf("\nfinished: %s after %u + %u tokens, the first after %.3f s\n",
              last.finish == FinishReason::kLength ? "length" : "stop", last.usage.prompt_tokens,
              last.usage.completion_tokens, last.usage.first_token_seconds);
  return 0;
}

// Cancels a long answer at its third token. The sink may call Cancel: it does not wait.
int AnswerAndCancel(Engine* engine, tinyserve::Request request) {
  request.max_tokens = 512;
  std::promise<TokenEvent> finished;
  int tokens = 0;
  const auto sink = [&](const TokenEvent& event) {
    if (event.kind == TokenEvent::Kind::kToken && ++tokens == 3) engine->Cancel(event.request);
    if (event.kind == TokenEvent::Kind::kFinished) finished.set_value(event);
  };
  const auto id = engine->Submit(request, sink);
  if (!id.ok()) return Fail(id.status());
  const TokenEvent last = finished.get_future().get();
  const bool cancelled = last.finish == FinishReason::kCancelled;
  std::printf("cancelled: %s, after %u tokens\n", cancelled ? "yes" : "no",
              last.usage.completion_tokens);
  return cancelled ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT\n", argv[0]);
    return 2;
  }
  tinyserve::EngineOptions options;
  options.model_path = argv[1];
  auto engine = Engine::Open(options);
  if (!engine.ok()) return Fail(engine.status());

  auto prompt = (*engine)->Tokenize(argv[2], /*add_special=*/true, /*parse_special=*/false);
  if (!prompt.ok()) return Fail(prompt.status());
  tinyserve::Request request;
  request.prompt = *prompt;
  request.max_tokens = 32;
  request.ignore_eos = true;
  if (const int failed = Answer(engine->get(), request)) return failed;
  return AnswerAndCancel(engine->get(), request);
}
