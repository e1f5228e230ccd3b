#include "tools/bench_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "engine/sampler.h"

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
  TS_ASSIGN_OR_RETURN(const uint32_t metadata, MetadataOf(options.selectors));
  TS_ASSIGN_OR_RETURN(const uint64_t token_bytes,
                      model.KvBytesPerToken(options.kv, options.page_tokens, metadata));
  const ExecutorOptions executor{.kv = options.kv,
                                 .kv_memory_bytes = plan.pool_tokens() * token_bytes,
                                 .page_tokens = options.page_tokens,
                                 .block_tokens = options.block_tokens,
                                 .sequences_max = sequences,
                                 .sequence_tokens_max = longest,
                                 .step_tokens_max = std::max(options.chunk_tokens, sequences),
                                 .selectors = options.selectors};
  TS_ASSIGN_OR_RETURN(runner->executor_,
                      Executor::Create(model.model.get(), model.kernels, model.compute,
                                       model.threads.get(), executor));
  for (const std::string& selector : options.selectors) {
    TS_ASSIGN_OR_RETURN(const uint32_t index, runner->executor_->FindSelector(selector));
    runner->selectors_.push_back(index);
  }
  for (uint32_t s = 0; s < sequences; ++s) {
    Sequence sequence;
    TS_ASSIGN_OR_RETURN(sequence.slot, runner->executor_->cache()->AddSequence());
    TS_RETURN_IF_ERROR(runner->executor_->cache()->Reserve(sequence.slot, plan.sequence_tokens[s]));
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
  // A number that looks random and depends on sequence and position alone (the finaliser of
  // splitmix64).
  uint64_t x = (uint64_t{sequence} << 32 | position) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<int32_t>(x % options_.model->model->config().vocab);
}

void BenchRunner::CountStep(BenchSample* sample) const {
  const StepCost cost = executor_->cost();
  sample->bytes += static_cast<double>(cost.weight_bytes + cost.kv_bytes);
  sample->roofline_seconds += RooflineSeconds(cost, options_.peaks);
  ++sample->steps;
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
                           .want = ends ? Want::kLogits : Want::kNothing});
    for (uint32_t i = 0; i < length; ++i) batch_.inputs.push_back(PromptToken(sequence, at + i));
    executor_->Run(batch_);
    if (ends) executor_->SetSampled(0, Argmax(executor_->logits(0)));
    CountStep(sample);
    at += length;
    if (progress) progress(length);
  }
  s.filled = std::max(s.filled, last);
}

void BenchRunner::Decode(const BenchCase& c, uint32_t steps, BenchSample* sample) {
  for (uint32_t step = 0; step < steps; ++step) {
    batch_.Clear();
    for (uint32_t s = 0; s < c.batch; ++s) {
      batch_.rows.push_back({.slot = sequences_[s].slot,
                             .first_position = c.depth + step,
                             .length = 1,
                             .first_input = s,
                             .token_class = TokenClass::kGenerated,
                             .want = Want::kLogits,
                             .selector = selectors_[c.selector]});
      batch_.inputs.push_back(step == 0 ? PromptToken(s, c.depth) : ~static_cast<int32_t>(s));
    }
    executor_->Run(batch_);
    options_.model->threads->For(c.batch, [&](uint32_t s, uint32_t) {
      executor_->SetSampled(s, Argmax(executor_->logits(s)));
    });
    CountStep(sample);
  }
}

void BenchRunner::Prepare(const BenchCase& c, const std::function<void(uint32_t)>& progress) {
  BenchSample untimed;
  for (uint32_t i = 0; i < c.batch; ++i) {
    Sequence& s = sequences_[i];
    if (s.overwritten_last > s.overwritten_first && s.overwritten_first != c.depth) {
      Prefill(i, s.overwritten_first, std::min(s.overwritten_last, s.filled), &untimed, progress);
      s.overwritten_first = s.overwritten_last = 0;
    }
    if (s.filled >= c.depth) continue;
    if (i == 0 || has_text()) {
      Prefill(i, s.filled, c.depth, &untimed, progress);
    } else {
      executor_->cache()->Copy(sequences_[0].slot, s.slot, s.filled, c.depth);
      s.filled = c.depth;
    }
  }
}

BenchSample BenchRunner::Run(const BenchCase& c) {
  TS_CHECK(c.batch <= sequences_.size() && sequences_[0].filled >= c.depth);
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
  const Clock::time_point start = Clock::now();
  Decode(c, c.tokens, &sample);
  sample.seconds = SecondsSince(start);
  for (uint32_t i = 0; i < c.batch; ++i) {
    Sequence& s = sequences_[i];
    if (i == 0 || has_text()) {
      s.overwritten_first = c.depth;
      s.overwritten_last = std::max(s.overwritten_last, c.depth + c.tokens);
    } else {
      s.filled = std::min(s.filled, c.depth);  // copying again is cheap
    }
  }
  return sample;
}

}  // namespace tinyserve
