#include "server/generation.h"

#include <fmt/format.h>
#include <sys/random.h>

#include <algorithm>

#include "base/check.h"

namespace tinyserve {
namespace {

// Events of one stream that may wait for a slow reader. What a request that does not stream may
// gather is bounded by its own length.
constexpr size_t kStreamEventsMax = 1024;

uint64_t RandomSeed() {
  uint64_t seed = 0;
  // Of so few bytes it is never cut short once the system's pool is filled.
  TS_CHECK(getrandom(&seed, sizeof seed, 0) == sizeof seed);
  return seed;
}

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// Null: `*error` says why.
std::shared_ptr<const Grammar> CompileGrammar(const Engine& engine, const GrammarSpec& spec,
                                              std::optional<ApiError>* error) {
  Result<std::shared_ptr<const Grammar>> grammar = engine.CompileGrammar(spec.kind, spec.text);
  if (grammar.ok()) return *std::move(grammar);
  *error = ErrorOf(grammar.status());
  if ((*error)->status == 400) {
    *error = BadField(spec.field, fmt::format("'{}': {}", spec.field, grammar.status().message()));
  }
  return nullptr;
}

}  // namespace

Generation::Generation(Engine* engine, Metrics* metrics, size_t events_max)
    : engine_(engine),
      metrics_(metrics),
      queue_(std::make_shared<EventQueue>(events_max)),
      submitted_(std::chrono::steady_clock::now()) {}

std::unique_ptr<Generation> Generation::Start(Engine* engine, Metrics* metrics,
                                              const GenerationOptions& options,
                                              const std::vector<std::vector<int32_t>>& prompts,
                                              std::optional<ApiError>* error) {
  const std::optional<std::vector<uint32_t>> room =
      AnswerRoom(prompts, options.max_tokens, engine->info().context_tokens, error);
  if (!room) return nullptr;
  size_t events = 0;
  for (const uint32_t tokens : *room) events += options.n * (size_t{tokens} + 1);
  const size_t streamed_max = kStreamEventsMax * options.n * prompts.size();
  const size_t events_max = options.stream ? std::min(events, streamed_max) : events;
  auto started = std::unique_ptr<Generation>(new Generation(engine, metrics, events_max));
  std::shared_ptr<const Grammar> grammar;
  if (options.grammar) {
    grammar = CompileGrammar(*engine, *options.grammar, error);
    if (grammar == nullptr) return nullptr;
  }
  Request request = options.engine;
  const uint64_t seed = options.seed.value_or(RandomSeed());
  for (size_t p = 0; p < prompts.size(); ++p) {
    request.prompt = prompts[p];
    request.max_tokens = (*room)[p];
    for (uint32_t i = 0; i < options.n; ++i) {
      // Answers to one prompt differ; the same seed gives them all again.
      request.sampling.seed = seed + i;
      if (grammar != nullptr) {
        Result<std::shared_ptr<TokenConstraint>> constraint = grammar->Start();
        if (!constraint.ok()) {
          *error = ErrorOf(constraint.status());
          return nullptr;
        }
        request.constraint = *std::move(constraint);
      }
      const auto choice = static_cast<uint32_t>(p * options.n + i);
      Result<RequestId> id = engine->Submit(
          request, [queue = started->queue_, choice, engine](const TokenEvent& event) {
            if (!queue->Push(choice, event)) engine->Cancel(event.request);
          });
      if (!id.ok()) {
        *error = ErrorOf(id.status());
        return nullptr;  // and those that were submitted are cancelled
      }
      started->ids_.push_back(*id);
      started->finished_.push_back(false);
      started->last_token_.emplace_back();
      ++started->live_;
    }
  }
  return started;
}

Generation::~Generation() {
  queue_->SetWake({});
  for (const Arrival& arrival : queue_->Take()) Observe(arrival);
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (finished_[i]) continue;
    engine_->Cancel(ids_[i]);
    metrics_->ObserveAbort();
  }
}

std::function<void()> Generation::canceller() const {
  return [engine = engine_, ids = ids_] {
    for (const RequestId id : ids) engine->Cancel(id);
  };
}

std::vector<Arrival> Generation::Take() {
  std::vector<Arrival> arrivals = queue_->Take();
  overflowed_ = queue_->overflowed();
  for (const Arrival& arrival : arrivals) Observe(arrival);
  return arrivals;
}

void Generation::Observe(const Arrival& arrival) {
  const uint32_t choice = arrival.choice;
  if (arrival.event.kind == TokenEvent::Kind::kToken) {
    auto& last = last_token_[choice];
    if (last == std::chrono::steady_clock::time_point()) {
      metrics_->ObserveFirstToken(Seconds(arrival.time - submitted_));
    } else {
      metrics_->ObserveTokenGap(Seconds(arrival.time - last));
    }
    last = arrival.time;
    return;
  }
  TS_CHECK(!finished_[choice]);
  finished_[choice] = true;
  --live_;
  metrics_->ObserveFinish(arrival.event, Seconds(arrival.time - submitted_));
}

std::optional<std::vector<uint32_t>> AnswerRoom(const std::vector<std::vector<int32_t>>& prompts,
                                                std::optional<uint32_t> max_tokens,
                                                uint32_t context_tokens,
                                                std::optional<ApiError>* error) {
  std::vector<uint32_t> room;
  for (const std::vector<int32_t>& prompt : prompts) {
    if (prompt.empty()) {
      *error = BadField("prompt", "the prompt is empty: at least one token is needed");
      return std::nullopt;
    }
    const uint64_t least = max_tokens.value_or(1);
    if (prompt.size() + least > context_tokens) {
      *error = BadField(
          "prompt",
          fmt::format("the prompt has {} tokens, the answer {} {}: the context holds "
                      "{} in all",
                      prompt.size(), max_tokens ? "up to" : "at least", least, context_tokens));
      (*error)->code = "context_length_exceeded";
      return std::nullopt;
    }
    room.push_back(max_tokens.value_or(context_tokens - static_cast<uint32_t>(prompt.size())));
  }
  return room;
}

}  // namespace tinyserve
