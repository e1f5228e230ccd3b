#include "tools/eval_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iterator>

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

double WindowWork(const EvalShape& shape, size_t methods, size_t storages) {
  return static_cast<double>(storages) * shape.prompt_tokens +
         kDecodeWork * static_cast<double>(methods + 1) * shape.scored_tokens;
}

uint32_t EvalRunner::step_tokens() const {
  return std::max(
      {options_.chunk_tokens, kRowTokens, static_cast<uint32_t>(options_.methods.size()) + 1});
}

uint32_t EvalRunner::held_tokens() const {
  const uint32_t block = BlockTokensFor(options_.page_tokens);
  return (shape_.tokens() + block - 1) / block * block;
}

void EvalRunner::AddLanes() {
  lanes_.resize(options_.methods.size() + 1);
  const auto add = [this](Lane* lane, const std::string& name, const std::string& kv) {
    lane->name = name;
    auto storage = std::find_if(storages_.begin(), storages_.end(),
                                [&](const Storage& s) { return s.kv == kv; });
    if (storage == storages_.end()) {
      storages_.push_back({.kv = kv, .executor = nullptr, .lanes = {}});
      storage = std::prev(storages_.end());
    }
    storage->lanes.push_back(lane);
  };
  add(&lanes_[0], "full", options_.base_kv);
  lanes_[0].selector_typed = "full";
  for (size_t i = 0; i < options_.methods.size(); ++i) {
    const Method& method = options_.methods[i];
    add(&lanes_[i + 1], method.typed, method.kv);
    lanes_[i + 1].selector_typed = method.spec.typed;
    lanes_[i + 1].step_plugins = method.steps;
    lanes_[i + 1].prunes = method.prunes;
  }
}

Result<uint64_t> EvalRunner::BytesOf(const Storage& storage) const {
  const LoadedModel& model = *options_.model;
  const auto lanes = static_cast<uint32_t>(storage.lanes.size());
  TS_ASSIGN_OR_RETURN(
      const SelectorNeeds kept,
      model.NeedsOf(storage.kv, SelectorsOf(options_.methods, storage.kv), options_.page_tokens));
  TS_ASSIGN_OR_RETURN(const uint64_t token_bytes,
                      model.KvBytesPerToken(storage.kv, options_.page_tokens, kept));
  TS_ASSIGN_OR_RETURN(
      const uint64_t fixed_bytes,
      model.KvFixedBytes(storage.kv, options_.page_tokens, kept, lanes, step_tokens()));
  return uint64_t{held_tokens()} * lanes * token_bytes + fixed_bytes;
}

Status EvalRunner::Open(Storage* storage, uint64_t bytes) {
  const LoadedModel& model = *options_.model;
  std::vector<std::string> selectors;
  for (const Lane* lane : storage->lanes) selectors.push_back(lane->selector_typed);
  const ExecutorOptions options{.kv = storage->kv,
                                .kv_memory_bytes = bytes,
                                .page_tokens = options_.page_tokens,
                                .block_tokens = BlockTokensFor(options_.page_tokens),
                                .sequences_max = static_cast<uint32_t>(storage->lanes.size()),
                                .sequence_tokens_max = held_tokens(),
                                .step_tokens_max = step_tokens(),
                                .selectors = selectors,
                                .logits_max = kRowTokens,
                                .trace = model.trace.get()};
  TS_ASSIGN_OR_RETURN(storage->executor, model.backend->CreateExecutor(options));
  storage->executor->SetSelectionTimed(options_.timed_selection);
  for (Lane* lane : storage->lanes) {
    lane->executor = storage->executor.get();
    TS_ASSIGN_OR_RETURN(lane->slot, lane->executor->cache()->AddSequence());
    TS_ASSIGN_OR_RETURN(lane->selector, lane->executor->FindSelector(lane->selector_typed));
    TS_ASSIGN_OR_RETURN(lane->steps, lane->executor->FindSteps(lane->step_plugins));
  }
  return Status();
}

Result<std::unique_ptr<EvalRunner>> EvalRunner::Create(const EvalRunnerOptions& options,
                                                       const EvalShape& shape) {
  TS_CHECK(shape.prompt_tokens > 0 && shape.scored_tokens > 0);
  std::unique_ptr<EvalRunner> runner(new EvalRunner);
  runner->options_ = options;
  runner->shape_ = shape;
  runner->AddLanes();
  std::vector<uint64_t> bytes;
  uint64_t bytes_total = 0;
  for (const Storage& storage : runner->storages_) {
    TS_ASSIGN_OR_RETURN(const uint64_t of_storage, runner->BytesOf(storage));
    bytes.push_back(of_storage);
    bytes_total += of_storage;
  }
  if (bytes_total > options.kv_bytes_max) {
    return Status(Code::kOutOfMemory,
                  fmt::format("{} methods and dense attention over {} tokens need {} of KV cache, "
                              "of {} that this process may use: give fewer --method at a time",
                              options.methods.size(), shape.tokens(), FormatBytes(bytes_total),
                              FormatBytes(options.kv_bytes_max)));
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    TS_RETURN_IF_ERROR(runner->Open(&runner->storages_[i], bytes[i]));
  }
  const uint64_t vocab = options.model->config().vocab;
  runner->dense_logits_.resize(kRowTokens * vocab);
  runner->logits_.resize(kRowTokens * vocab);
  runner->comparisons_.resize(kRowTokens);
  return runner;
}

// Empty sequences.
Status EvalRunner::Restart() {
  for (Lane& lane : lanes_) lane.executor->cache()->RemoveSequence(lane.slot);
  for (Lane& lane : lanes_) {
    TS_ASSIGN_OR_RETURN(lane.slot, lane.executor->cache()->AddSequence());
    lane.seconds = 0;
    lane.timed_steps = 0;
  }
  return Status();
}

Status EvalRunner::PrefillLane(const Lane& lane, std::span<const int32_t> tokens,
                               const std::function<void(uint32_t)>& progress) {
  KvCache* cache = lane.executor->cache();
  for (uint32_t at = 0; at < shape_.prompt_tokens;) {
    const uint32_t length = std::min(options_.chunk_tokens, shape_.prompt_tokens - at);
    batch_.Clear();
    batch_.rows.push_back({.slot = lane.slot,
                           .first_position = at,
                           .length = length,
                           .first_input = 0,
                           .token_class = TokenClass::kPrompt,
                           .want = Want::kNothing,
                           .steps = lane.steps});
    const auto chunk = tokens.subspan(at, length);
    batch_.inputs.assign(chunk.begin(), chunk.end());
    TS_RETURN_IF_ERROR(cache->Reserve(lane.slot, at + length));
    TS_RETURN_IF_ERROR(lane.executor->RunStep(batch_));
    at += length;
    cache->Commit(lane.slot, at);
    progress(at);
  }
  return Status();
}

Status EvalRunner::Prefill(Storage* storage, std::span<const int32_t> tokens,
                           const std::function<void(uint32_t)>& progress) {
  const TraceScope scope(options_.model->trace.get(), "prompt over " + storage->kv);
  const Lane& first = *storage->lanes[0];
  TS_RETURN_IF_ERROR(PrefillLane(first, tokens, progress));
  for (size_t i = 1; i < storage->lanes.size(); ++i) {
    const Lane& lane = *storage->lanes[i];
    TS_RETURN_IF_ERROR(
        lane.prunes ? PrefillLane(lane, tokens, [](uint32_t) {})
                    : first.executor->cache()->Copy(first.slot, lane.slot, shape_.prompt_tokens));
  }
  for (const Lane* lane : storage->lanes) lane->executor->Prune(lane->slot, lane->steps);
  return Status();
}

EvalRunner::Turn EvalRunner::NextTurn(uint32_t first) const {
  const uint32_t left = shape_.tokens() - first;
  // Tokens may be dropped where a block ends: no turn goes beyond.
  const uint32_t block = BlockTokensFor(options_.page_tokens), in_block = block - first % block;
  if (left > kTimedTokens) {
    return {.first = first,
            .count = std::min({kRowTokens, left - kTimedTokens, in_block}),
            .timed = false};
  }
  return {.first = first, .count = std::min({kTimedTurnTokens, left, in_block}), .timed = true};
}

Status EvalRunner::RunRow(const Lane& lane, uint32_t first, std::span<const int32_t> tokens,
                          float* out) {
  batch_.Clear();
  batch_.rows.push_back({.slot = lane.slot,
                         .first_position = first,
                         .length = static_cast<uint32_t>(tokens.size()),
                         .first_input = 0,
                         .token_class = TokenClass::kGenerated,
                         .want = Want::kEveryLogits,
                         .selector = lane.selector,
                         .steps = lane.steps});
  batch_.inputs.assign(tokens.begin(), tokens.end());
  TS_RETURN_IF_ERROR(lane.executor->RunStep(batch_));
  const std::span<const float> logits = lane.executor->logits(0);
  std::copy(logits.begin(), logits.end(), out);
  return Status();
}

Status EvalRunner::RunTurn(const Turn& turn, std::span<const int32_t> tokens, Lane* lane,
                           float* out) {
  const TraceScope scope(options_.model->trace.get(), lane->name, turn.first);
  Executor* executor = lane->executor;
  const uint32_t end = turn.first + turn.count;
  TS_RETURN_IF_ERROR(executor->cache()->Reserve(lane->slot, HeldBy(*lane, end)));
  executor->ResetSelectionCounts();
  executor->SetShadowShare(turn.timed ? 0 : options_.shadow_check);
  const uint32_t row_tokens = turn.timed ? 1 : turn.count;
  const uint64_t vocab = options_.model->config().vocab;
  for (uint32_t i = 0; i < turn.count; i += row_tokens) {
    const Clock::time_point start = Clock::now();
    const auto row = tokens.subspan(turn.first + i, row_tokens);
    TS_RETURN_IF_ERROR(RunRow(*lane, turn.first + i, row, out + i * vocab));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (!turn.timed) continue;
    lane->run.kv_bytes_read += executor->cost().kv_bytes;
    lane->run.pages_held += (turn.first + i) / options_.page_tokens + 1;
    ++lane->run.decoded_tokens;
    if (i == 0) continue;
    lane->seconds += seconds;
    ++lane->timed_steps;
  }
  executor->cache()->Commit(lane->slot, HeldBy(*lane, end));
  if (end % executor->cache()->share_tokens() == 0) executor->Prune(lane->slot, lane->steps);
  lane->run.failures += executor->selection_counts().failures;
  const std::vector<SelectionCounts> strips = executor->strip_counts();
  lane->run.strips.resize(strips.size());
  for (size_t i = 0; i < strips.size(); ++i) lane->run.strips[i].Add(strips[i]);
  return Status();
}

ShadowStats EvalRunner::shadow(size_t method) const {
  const Lane& lane = lanes_[method + 1];
  for (const ShadowStats& stats : lane.executor->shadow_stats()) {
    if (lane.selector != 0 && stats.selector == options_.methods[method].spec.resolved)
      return stats;
  }
  return {};
}

Status EvalRunner::Score(const Turn& turn, std::span<const int32_t> tokens, size_t method,
                         const OnToken& on_token) {
  Lane* lane = &lanes_[method + 1];
  const uint64_t vocab = options_.model->config().vocab;
  options_.model->threads->For(turn.count, [&](uint32_t i, uint32_t) {
    comparisons_[i] = Compare({dense_logits_.data() + i * vocab, vocab},
                              {logits_.data() + i * vocab, vocab}, tokens[turn.first + i + 1]);
  });
  for (uint32_t i = 0; i < turn.count; ++i) {
    const TokenComparison& c = comparisons_[i];
    if (!std::isfinite(c.kl) || !std::isfinite(c.nll)) {
      return Status(Code::kInternal,
                    fmt::format("{}: the logits after token {} of a window are not finite",
                                lane->name, turn.first + i));
    }
    lane->run.figures.Add(turn.first + i - shape_.prompt_tokens, c);
    if (on_token) on_token(method, turn.first + i, c);
  }
  return Status();
}

Status EvalRunner::RunWindow(std::span<const int32_t> tokens,
                             const std::function<void(double)>& progress, const OnToken& on_token) {
  TS_CHECK(tokens.size() == shape_.tokens() + uint64_t{1});
  const double work = WindowWork(shape_, lanes_.size() - 1, storages_.size());
  TS_RETURN_IF_ERROR(Restart());
  double prompts = 0;  // tokens that are prefilled
  for (Storage& storage : storages_) {
    TS_RETURN_IF_ERROR(
        Prefill(&storage, tokens, [&](uint32_t done) { progress((prompts + done) / work); }));
    prompts += shape_.prompt_tokens;
  }
  for (uint32_t at = shape_.prompt_tokens; at < shape_.tokens();) {
    const Turn turn = NextTurn(at);
    TS_RETURN_IF_ERROR(RunTurn(turn, tokens, &lanes_[0], dense_logits_.data()));
    for (size_t method = 1; method < lanes_.size(); ++method) {
      TS_RETURN_IF_ERROR(RunTurn(turn, tokens, &lanes_[method], logits_.data()));
      TS_RETURN_IF_ERROR(Score(turn, tokens, method - 1, on_token));
    }
    at += turn.count;
    progress(1 - (1 - prompts / work) * (shape_.tokens() - at) / shape_.scored_tokens);
  }
  for (Lane& lane : lanes_) {
    lane.run.dropped_tokens += lane.executor->cache()->dropped_tokens(lane.slot);
    if (lane.timed_steps > 0) lane.run.tokens_per_s.push_back(lane.timed_steps / lane.seconds);
  }
  return Status();
}

}  // namespace tinyserve
