#include "tools/eval_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/check.h"
#include "tools/format.h"

namespace tinyserve {
namespace {

using Clock = std::chrono::steady_clock;

// Tokens of a turn: rows of several tokens share the reading of weights.
constexpr uint32_t kRowTokens = 16;
// The last tokens of a window are decoded one at a time, in turns so short that a drift of the
// machine's speed touches all methods. A turn's first step is not timed: it finds the caches as
// another method left them.
constexpr uint32_t kTimedTokens = 32, kTimedTurnTokens = 8;
static_assert(kTimedTurnTokens <= kRowTokens);

// A decoded token takes about so many times as long as one of a long prompt.
constexpr double kDecodeWork = 6;

}  // namespace

double WindowWork(const EvalShape& shape, size_t methods) {
  return shape.prompt_tokens + kDecodeWork * static_cast<double>(methods + 1) * shape.scored_tokens;
}

Result<std::unique_ptr<EvalRunner>> EvalRunner::Create(const EvalRunnerOptions& options,
                                                       const EvalShape& shape) {
  TS_CHECK(shape.prompt_tokens > 0 && shape.scored_tokens > 0);
  std::unique_ptr<EvalRunner> runner(new EvalRunner);
  runner->options_ = options;
  runner->shape_ = shape;
  const LoadedModel& model = *options.model;
  const auto lanes = static_cast<uint32_t>(options.methods.size()) + 1;
  const uint32_t block_tokens = BlockTokensFor(options.page_tokens);
  const uint64_t held = (uint64_t{shape.tokens()} + block_tokens - 1) / block_tokens * block_tokens;
  TS_ASSIGN_OR_RETURN(const uint32_t metadata, MetadataOf(options.methods));
  TS_ASSIGN_OR_RETURN(const uint64_t token_bytes,
                      model.KvBytesPerToken(options.kv, options.page_tokens, metadata));
  const uint32_t step_tokens = std::max({options.chunk_tokens, kRowTokens, lanes});
  TS_ASSIGN_OR_RETURN(const uint64_t open_bytes,
                      model.KvOpenBytes(options.kv, options.page_tokens, lanes, step_tokens));
  const uint64_t bytes = held * lanes * token_bytes + open_bytes;
  if (bytes > options.kv_bytes_max) {
    return Status(Code::kOutOfMemory,
                  fmt::format("{} methods and dense attention over {} tokens need {} of KV cache, "
                              "of {} that this process may use: give fewer --method at a time",
                              options.methods.size(), shape.tokens(), FormatBytes(bytes),
                              FormatBytes(options.kv_bytes_max)));
  }
  const ExecutorOptions executor{.kv = options.kv,
                                 .kv_memory_bytes = bytes,
                                 .page_tokens = options.page_tokens,
                                 .block_tokens = block_tokens,
                                 .sequences_max = lanes,
                                 .sequence_tokens_max = static_cast<uint32_t>(held),
                                 .step_tokens_max = step_tokens,
                                 .selectors = options.methods,
                                 .logits_max = kRowTokens};
  TS_ASSIGN_OR_RETURN(runner->executor_,
                      Executor::Create(model.model.get(), model.kernels, model.compute,
                                       model.threads.get(), executor));
  runner->lanes_.resize(lanes);
  for (uint32_t i = 0; i < lanes; ++i) {
    Lane& lane = runner->lanes_[i];
    TS_ASSIGN_OR_RETURN(lane.slot, runner->executor_->cache()->AddSequence());
    if (i > 0) {
      TS_ASSIGN_OR_RETURN(lane.selector, runner->executor_->FindSelector(options.methods[i - 1]));
    }
    lane.run.resolved = runner->executor_->selector_resolved(lane.selector);
  }
  const uint64_t vocab = model.model->config().vocab;
  runner->dense_logits_.resize(kRowTokens * vocab);
  runner->logits_.resize(kRowTokens * vocab);
  runner->comparisons_.resize(kRowTokens);
  return runner;
}

// Empty sequences.
Status EvalRunner::Restart() {
  KvCache* cache = executor_->cache();
  for (Lane& lane : lanes_) cache->RemoveSequence(lane.slot);
  for (Lane& lane : lanes_) {
    TS_ASSIGN_OR_RETURN(lane.slot, cache->AddSequence());
    lane.seconds = 0;
    lane.timed_steps = 0;
  }
  return Status();
}

Status EvalRunner::Prefill(std::span<const int32_t> tokens,
                           const std::function<void(uint32_t)>& progress) {
  KvCache* cache = executor_->cache();
  for (uint32_t at = 0; at < shape_.prompt_tokens;) {
    const uint32_t length = std::min(options_.chunk_tokens, shape_.prompt_tokens - at);
    batch_.Clear();
    batch_.rows.push_back({.slot = lanes_[0].slot,
                           .first_position = at,
                           .length = length,
                           .first_input = 0,
                           .token_class = TokenClass::kPrompt,
                           .want = Want::kNothing});
    const auto chunk = tokens.subspan(at, length);
    batch_.inputs.assign(chunk.begin(), chunk.end());
    TS_RETURN_IF_ERROR(cache->Reserve(lanes_[0].slot, at + length));
    executor_->Run(batch_);
    at += length;
    cache->Commit(lanes_[0].slot, at);
    progress(at);
  }
  for (size_t method = 1; method < lanes_.size(); ++method) {
    TS_RETURN_IF_ERROR(cache->Copy(lanes_[0].slot, lanes_[method].slot, shape_.prompt_tokens));
  }
  return Status();
}

EvalRunner::Turn EvalRunner::NextTurn(uint32_t first) const {
  const uint32_t left = shape_.tokens() - first;
  if (left > kTimedTokens) {
    return {.first = first, .count = std::min(kRowTokens, left - kTimedTokens), .timed = false};
  }
  return {.first = first, .count = std::min(kTimedTurnTokens, left), .timed = true};
}

void EvalRunner::RunRow(const Lane& lane, uint32_t first, std::span<const int32_t> tokens,
                        float* out) {
  batch_.Clear();
  batch_.rows.push_back({.slot = lane.slot,
                         .first_position = first,
                         .length = static_cast<uint32_t>(tokens.size()),
                         .first_input = 0,
                         .token_class = TokenClass::kGenerated,
                         .want = Want::kEveryLogits,
                         .selector = lane.selector});
  batch_.inputs.assign(tokens.begin(), tokens.end());
  executor_->Run(batch_);
  const std::span<const float> logits = executor_->logits(0);
  std::copy(logits.begin(), logits.end(), out);
}

Status EvalRunner::RunTurn(const Turn& turn, std::span<const int32_t> tokens, Lane* lane,
                           float* out) {
  TS_RETURN_IF_ERROR(executor_->cache()->Reserve(lane->slot, turn.first + turn.count));
  const uint64_t failures = executor_->selection_counts().failures;
  const uint32_t row_tokens = turn.timed ? 1 : turn.count;
  const uint64_t vocab = options_.model->model->config().vocab;
  for (uint32_t i = 0; i < turn.count; i += row_tokens) {
    const Clock::time_point start = Clock::now();
    RunRow(*lane, turn.first + i, tokens.subspan(turn.first + i, row_tokens), out + i * vocab);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (!turn.timed) continue;
    lane->run.kv_bytes_read += executor_->cost().kv_bytes;
    lane->run.pages_held += (turn.first + i) / options_.page_tokens + 1;
    ++lane->run.decoded_tokens;
    if (i == 0) continue;
    lane->seconds += seconds;
    ++lane->timed_steps;
  }
  executor_->cache()->Commit(lane->slot, turn.first + turn.count);
  lane->run.failures += executor_->selection_counts().failures - failures;
  return Status();
}

Status EvalRunner::Score(const Turn& turn, std::span<const int32_t> tokens, Lane* lane) {
  const uint64_t vocab = options_.model->model->config().vocab;
  options_.model->threads->For(turn.count, [&](uint32_t i, uint32_t) {
    comparisons_[i] = Compare({dense_logits_.data() + i * vocab, vocab},
                              {logits_.data() + i * vocab, vocab}, tokens[turn.first + i + 1]);
  });
  for (uint32_t i = 0; i < turn.count; ++i) {
    const TokenComparison& c = comparisons_[i];
    if (!std::isfinite(c.kl) || !std::isfinite(c.nll)) {
      return Status(Code::kInternal,
                    fmt::format("{}: the logits after token {} of a window are not finite",
                                lane->run.resolved, turn.first + i));
    }
    lane->run.figures.Add(turn.first + i - shape_.prompt_tokens, c);
  }
  return Status();
}

Status EvalRunner::RunWindow(std::span<const int32_t> tokens,
                             const std::function<void(double)>& progress) {
  TS_CHECK(tokens.size() == shape_.tokens() + uint64_t{1});
  const double work = WindowWork(shape_, lanes_.size() - 1);
  TS_RETURN_IF_ERROR(Restart());
  TS_RETURN_IF_ERROR(Prefill(tokens, [&](uint32_t done) { progress(done / work); }));
  for (uint32_t at = shape_.prompt_tokens; at < shape_.tokens();) {
    const Turn turn = NextTurn(at);
    TS_RETURN_IF_ERROR(RunTurn(turn, tokens, &lanes_[0], dense_logits_.data()));
    for (size_t method = 1; method < lanes_.size(); ++method) {
      TS_RETURN_IF_ERROR(RunTurn(turn, tokens, &lanes_[method], logits_.data()));
      TS_RETURN_IF_ERROR(Score(turn, tokens, &lanes_[method]));
    }
    at += turn.count;
    progress(1 - (1 - shape_.prompt_tokens / work) * (shape_.tokens() - at) / shape_.scored_tokens);
  }
  for (Lane& lane : lanes_) {
    if (lane.timed_steps > 0) lane.run.tokens_per_s.push_back(lane.timed_steps / lane.seconds);
  }
  return Status();
}

}  // namespace tinyserve
