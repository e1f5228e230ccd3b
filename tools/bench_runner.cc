#include "tools/bench_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "base/random.h"
#include "engine/sampler.h"
#include "engine/selection_stats.h"

namespace tinyserve {
namespace {

using Clock = std::chrono::steady_clock;

// A prefill case is run over and over until it has taken this long: one chunk of 16 tokens is
// otherwise too short to time.
constexpr double kPrefillSecondsMin = 0.1;
constexpr uint32_t kWarmUpSteps = 3;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Result<std::unique_ptr<BenchRunner>> BenchRunner::Create(const BenchRunnerOptions& options,
                                                         const BenchPlan& plan) {
  std::unique_ptr<BenchRunner> runner(new BenchRunner);
  runner->options_ = options;
  const LoadedModel& model = *options.model;
  const auto sequences = static_cast<uint32_t>(plan.sequence_tokens.size());
  const uint32_t longest =
      *std::max_element(plan.sequence_tokens.begin(), plan.sequence_tokens.end());
  if (runner->has_text() && options.text.tokens.size() < longest) {
    return Status(Code::kInvalidArgument,
                  fmt::format("--text has {} tokens: the longest sequence needs {}",
                              options.text.tokens.size(), longest));
  }
  TS_ASSIGN_OR_RETURN(
      const SelectorNeeds kept,
      model.NeedsOf(options.kv, SelectorsOf(options.methods, options.kv), options.page_tokens));
  TS_ASSIGN_OR_RETURN(const uint64_t token_bytes,
                      model.KvBytesPerToken(options.kv, options.page_tokens, kept));
  std::vector<std::string> selectors;
  for (const Method& method : options.methods) {
    if (method.kv == options.kv) selectors.push_back(method.spec.typed);
  }
  const auto uncommitted = static_cast<uint32_t>(
      std::min<uint64_t>(plan.case_tokens() + options.chunk_tokens, UINT32_MAX));
  TS_ASSIGN_OR_RETURN(
      const uint64_t fixed_bytes,
      model.KvFixedBytes(options.kv, options.page_tokens, kept, sequences, uncommitted));
  const ExecutorOptions executor{.kv = options.kv,
                                 .kv_memory_bytes = plan.pool_tokens() * token_bytes + fixed_bytes,
                                 .page_tokens = options.page_tokens,
                                 .block_tokens = options.block_tokens,
                                 .sequences_max = sequences,
                                 .sequence_tokens_max = longest,
                                 .step_tokens_max = std::max(options.chunk_tokens, sequences),
                                 .selectors = selectors,
                                 .uncommitted_tokens_max = uncommitted,
                                 .trace = model.trace.get()};
  TS_ASSIGN_OR_RETURN(runner->executor_, model.backend->CreateExecutor(executor));
  runner->executor_->SetSelectionTimed(options.layers);
  runner->selectors_.resize(options.methods.size());
  runner->steps_.resize(options.methods.size());
  for (size_t i = 0; i < options.methods.size(); ++i) {
    const Method& method = options.methods[i];
    if (method.kv != options.kv) continue;
    TS_ASSIGN_OR_RETURN(runner->selectors_[i], runner->executor_->FindSelector(method.spec.typed));
    TS_ASSIGN_OR_RETURN(runner->steps_[i], runner->executor_->FindSteps(method.steps));
  }
  for (uint32_t s = 0; s < sequences; ++s) {
    Sequence sequence;
    TS_ASSIGN_OR_RETURN(sequence.slot, runner->executor_->cache()->AddSequence());
    runner->sequences_.push_back(sequence);
  }
  return runner;
}

int32_t BenchRunner::PromptToken(uint32_t sequence, uint32_t position) const {
  const TextTokens& text = options_.text;
  if (has_text()) {
    if (position < text.prefix.size()) return text.prefix[position];
    const uint64_t start = sequence * uint64_t{text.tokens.size()} / sequences_.size();
    return text.tokens[(start + position - text.prefix.size()) % text.tokens.size()];
  }
  // A number that looks random and depends on sequence and position alone.
  const uint64_t x = MixBits((uint64_t{sequence} << 32 | position) + kGoldenGamma);
  return static_cast<int32_t>(x % options_.model->config().vocab);
}

void BenchRunner::CountStep(BenchSample* sample) const {
  const StepCost cost = executor_->cost();
  sample->bytes += static_cast<double>(cost.weight_bytes + cost.kv_bytes);
  sample->roofline_seconds += RooflineSeconds(cost, options_.peaks);
  ++sample->steps;
}

// The plan has room for every case.
void BenchRunner::Reserve(uint32_t sequence, uint32_t tokens) {
  const Status room = executor_->cache()->Reserve(sequences_[sequence].slot, tokens);
  TS_CHECK(room.ok());
}

bool BenchRunner::RunBatch() {
  if (status_.ok()) status_ = executor_->RunStep(batch_);
  return status_.ok();
}

bool BenchRunner::FinishBatch() {
  const Status ended = executor_->FinishStep();
  if (status_.ok()) status_ = ended;
  return status_.ok();
}

int32_t BenchRunner::Likeliest(size_t row) const {
  const std::optional<DrawnToken> drawn = executor_->drawn(row);
  return drawn ? drawn->token : Argmax(executor_->logits(row));
}

void BenchRunner::Prefill(uint32_t sequence, uint32_t first, uint32_t last, BenchSample* sample,
                          const std::function<void(uint32_t)>& progress) {
  Sequence& s = sequences_[sequence];
  for (uint32_t at = first; at < last;) {
    const uint32_t length = std::min(options_.chunk_tokens, last - at);
    const bool ends = at + length == last;
    batch_.Clear();
    batch_.rows.push_back({.slot = s.slot,
                           .first_position = at,
                           .length = length,
                           .first_input = 0,
                           .token_class = TokenClass::kPrompt,
                           .want = ends ? Want::kLogits : Want::kNothing,
                           .draw = {.on_device = true}});
    for (uint32_t i = 0; i < length; ++i) batch_.inputs.push_back(PromptToken(sequence, at + i));
    Reserve(sequence, at + length);
    if (!RunBatch()) return;
    if (ends) executor_->SetSampled(0, Likeliest(0));
    CountStep(sample);
    at += length;
    if (progress) progress(length);
  }
  s.filled = std::max(s.filled, last);
}

void BenchRunner::Fill(uint32_t sequence, uint32_t first, uint32_t last,
                       const std::function<void(uint32_t)>& progress) {
  BenchSample untimed;
  for (uint32_t at = first; at < last;) {
    const uint32_t end = std::min(last, at + options_.chunk_tokens);
    Prefill(sequence, at, end, &untimed, progress);
    executor_->cache()->Commit(sequences_[sequence].slot, end);
    at = end;
  }
}

// Whole windows that the sequence holds become what is committed.
void BenchRunner::SetCommitted(uint32_t sequence, uint32_t tokens) {
  KvCache* cache = executor_->cache();
  const SequenceSlot slot = sequences_[sequence].slot;
  if (cache->committed_tokens(slot) > tokens) {
    cache->Rewind(slot, tokens);
  } else {
    cache->Commit(slot, tokens);
  }
}

void BenchRunner::MoveTo(uint32_t sequence, uint32_t depth,
                         const std::function<void(uint32_t)>& progress) {
  Sequence& s = sequences_[sequence];
  KvCache* cache = executor_->cache();
  if (cache->committed_tokens(s.slot) == depth) return;
  if (s.overwritten_last > s.overwritten_first) {
    SetCommitted(sequence, s.overwritten_first);
    Fill(sequence, s.overwritten_first, std::min(s.overwritten_last, s.filled), progress);
    s.overwritten_first = s.overwritten_last = 0;
  }
  const uint32_t committed = cache->committed_tokens(s.slot);
  if (committed == s.filled && committed <= depth)
    return Fill(sequence, committed, depth, progress);
  const uint32_t begin = cache->codec().WindowBegin(std::min(depth, s.filled));
  SetCommitted(sequence, begin);
  Fill(sequence, begin, depth, progress);
}

void BenchRunner::FillDecode(const BenchCase& c, uint32_t step) {
  batch_.Clear();
  for (uint32_t s = 0; s < c.batch; ++s) {
    batch_.rows.push_back({.slot = sequences_[s].slot,
                           .first_position = c.depth + step,
                           .length = 1,
                           .first_input = s,
                           .token_class = TokenClass::kGenerated,
                           .want = Want::kLogits,
                           .selector = selectors_[c.selector],
                           .steps = steps_[c.selector],
                           .draw = {.on_device = true}});
    batch_.inputs.push_back(step == 0 ? PromptToken(s, c.depth) : ~static_cast<int32_t>(s));
    Reserve(s, c.depth + step + 1);
  }
}

// As the engine does: a step is begun before the one before it has ended, where that can be.
void BenchRunner::Decode(const BenchCase& c, uint32_t steps, BenchSample* sample) {
  const bool ahead = executor_->begins_ahead();
  for (uint32_t step = 0; step < steps; ++step) {
    FillDecode(c, step);
    if (ahead) executor_->BeginStep(batch_);
    if (ahead && step == 0) continue;
    if (!(ahead ? FinishBatch() : RunBatch())) break;
    if (!ahead) {
      options_.model->threads->For(
          c.batch, [&](uint32_t s, uint32_t) { executor_->SetSampled(s, Likeliest(s)); });
    }
    CountStep(sample);
  }
  if (ahead && FinishBatch()) CountStep(sample);
}

void BenchRunner::Prepare(const BenchCase& c, const std::function<void(uint32_t)>& progress) {
  KvCache* cache = executor_->cache();
  for (uint32_t i = 0; i < c.batch; ++i) {
    if (i == 0 || has_text()) {
      MoveTo(i, c.depth, progress);
      continue;
    }
    const SequenceSlot slot = sequences_[i].slot;
    if (cache->committed_tokens(slot) > c.depth)
      cache->Rewind(slot, cache->codec().WindowBegin(c.depth));
    const Status copied = cache->Copy(sequences_[0].slot, slot, c.depth);
    TS_CHECK(copied.ok());  // the plan has room for every case
  }
}

BenchSample BenchRunner::Run(const BenchCase& c) {
  TS_CHECK(c.batch <= sequences_.size() && options_.methods[c.selector].kv == options_.kv);
  for (uint32_t i = 0; i < c.batch; ++i)
    TS_CHECK(executor_->cache()->committed_tokens(sequences_[i].slot) == c.depth);
  return c.kind == BenchKind::kPrefill ? RunPrefill(c) : RunDecode(c);
}

BenchSample BenchRunner::RunPrefill(const BenchCase& c) {
  BenchSample warm_up, sample;
  Prefill(0, c.depth, c.depth + std::min(c.tokens, options_.chunk_tokens), &warm_up, {});
  uint32_t runs = 0;
  const Clock::time_point start = Clock::now();
  do {
    Prefill(0, c.depth, c.depth + c.tokens, &sample, {});
    ++runs;
  } while (SecondsSince(start) < kPrefillSecondsMin);
  sample.seconds = SecondsSince(start) / runs;
  sample.bytes /= runs;
  sample.roofline_seconds /= runs;
  sample.steps /= runs;
  return sample;
}

BenchSample BenchRunner::RunDecode(const BenchCase& c) {
  BenchSample warm_up, sample;
  Decode(c, std::min(c.tokens, kWarmUpSteps), &warm_up);
  executor_->ResetSelectionCounts();
  executor_->TakeDeviceTimes();
  const Clock::time_point start = Clock::now();
  Decode(c, c.tokens, &sample);
  sample.seconds = SecondsSince(start);
  sample.times = executor_->TakeDeviceTimes();
  if (options_.layers) {
    sample.layers = LayersOf(executor_->strip_counts(), options_.model->config().kv_heads);
  }
  const Codec& codec = executor_->cache()->codec();
  for (uint32_t i = 0; i < c.batch; ++i) {
    Sequence& s = sequences_[i];
    s.overwritten_first = codec.WindowBegin(c.depth);
    s.overwritten_last = std::max(s.overwritten_last, codec.WindowBegin(c.depth + c.tokens));
  }
  return sample;
}

}  // namespace tinyserve
