#include "tools/bench_runner.h"

#include <algorithm>
#include <chrono>
#include <cstring>

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
  const auto sequences = static_cast<uint32_t>(plan.sequence_tokens.size());
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(options.kv));
  const ModelConfig& config = options.model->config();
  const std::vector<LayerGroup> groups = {
      {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}};
  const uint64_t token_bytes =
      KvCache::BytesPerToken(groups, *codec, options.page_tokens, options.kernels);
  const uint32_t longest =
      *std::max_element(plan.sequence_tokens.begin(), plan.sequence_tokens.end());
  const ExecutorOptions executor{.kv = options.kv,
                                 .kv_memory_bytes = plan.pool_tokens() * token_bytes,
                                 .page_tokens = options.page_tokens,
                                 .block_tokens = options.block_tokens,
                                 .sequences_max = sequences,
                                 .sequence_tokens_max = longest,
                                 .step_tokens_max = std::max(options.chunk_tokens, sequences)};
  TS_ASSIGN_OR_RETURN(
      runner->executor_,
      Executor::Create(options.model, options.kernels, options.compute, options.threads, executor));
  for (uint32_t s = 0; s < sequences; ++s) {
    TS_ASSIGN_OR_RETURN(const SequenceSlot slot, runner->executor_->cache()->AddSequence());
    TS_RETURN_IF_ERROR(runner->executor_->cache()->Reserve(slot, plan.sequence_tokens[s]));
    runner->slots_.push_back(slot);
  }
  runner->filled_.assign(sequences, 0);
  return runner;
}

// A number that looks random and depends on sequence and position alone (the finaliser of
// splitmix64).
int32_t BenchRunner::PromptToken(uint32_t sequence, uint32_t position) const {
  uint64_t x = (uint64_t{sequence} << 32 | position) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<int32_t>(x % options_.model->config().vocab);
}

void BenchRunner::CountStep(BenchSample* sample) const {
  const StepCost cost = executor_->cost();
  sample->bytes += static_cast<double>(cost.weight_bytes + cost.kv_bytes);
  sample->roofline_seconds += RooflineSeconds(cost, options_.peaks);
  ++sample->steps;
}

void BenchRunner::Prefill(uint32_t first, uint32_t last, BenchSample* sample,
                          const std::function<void(double)>& progress) {
  for (uint32_t at = first; at < last;) {
    const uint32_t length = std::min(options_.chunk_tokens, last - at);
    const bool ends = at + length == last;
    batch_.Clear();
    batch_.rows.push_back({.slot = slots_[0],
                           .first_position = at,
                           .length = length,
                           .first_input = 0,
                           .token_class = TokenClass::kPrompt,
                           .want = ends ? Want::kLogits : Want::kNothing});
    for (uint32_t i = 0; i < length; ++i) batch_.inputs.push_back(PromptToken(0, at + i));
    executor_->Run(batch_);
    if (ends) executor_->SetSampled(0, Argmax(executor_->logits(0)));
    CountStep(sample);
    at += length;
    if (progress) progress(static_cast<double>(at - first) / (last - first));
  }
  filled_[0] = std::max(filled_[0], last);
}

void BenchRunner::Decode(const BenchCase& c, uint32_t steps, BenchSample* sample) {
  for (uint32_t step = 0; step < steps; ++step) {
    batch_.Clear();
    for (uint32_t s = 0; s < c.batch; ++s) {
      batch_.rows.push_back({.slot = slots_[s],
                             .first_position = c.depth + step,
                             .length = 1,
                             .first_input = s,
                             .token_class = TokenClass::kGenerated,
                             .want = Want::kLogits});
      batch_.inputs.push_back(step == 0 ? PromptToken(s, c.depth) : ~static_cast<int32_t>(s));
    }
    executor_->Run(batch_);
    options_.threads->For(c.batch, [&](uint32_t s, uint32_t) {
      executor_->SetSampled(s, Argmax(executor_->logits(s)));
    });
    CountStep(sample);
  }
}

void BenchRunner::VisitPages(uint32_t first, uint32_t last,
                             const std::function<void(uint8_t*, uint32_t)>& visit) const {
  KvCache* cache = executor_->cache();
  for (uint32_t group = 0; group < cache->groups(); ++group) {
    const ModelConfig& config = options_.model->config();
    const KvShape shape = cache->shape(group);
    const PageView view = cache->View(slots_[0], group, last);
    for (uint32_t layer = 0; layer < config.layers; ++layer) {
      for (uint32_t head = 0; head < shape.kv_heads; ++head) {
        const KvSlab slab = cache->slab(group, layer, head);
        for (uint32_t page = first / shape.page_tokens; page < view.count; ++page) {
          visit(PageAt(slab, view.pages[page]), slab.page_bytes);
        }
      }
    }
  }
}

void BenchRunner::CopyPages(uint32_t sequence, uint32_t first, uint32_t last) {
  KvCache* cache = executor_->cache();
  const ModelConfig& config = options_.model->config();
  for (uint32_t group = 0; group < cache->groups(); ++group) {
    const KvShape shape = cache->shape(group);
    const PageView from = cache->View(slots_[0], group, last);
    const PageView to = cache->View(slots_[sequence], group, last);
    options_.threads->For(config.layers, [&](uint32_t layer, uint32_t) {
      for (uint32_t head = 0; head < shape.kv_heads; ++head) {
        const KvSlab slab = cache->slab(group, layer, head);
        for (uint32_t page = first / shape.page_tokens; page < from.count; ++page) {
          std::memcpy(PageAt(slab, to.pages[page]), PageAt(slab, from.pages[page]),
                      slab.page_bytes);
        }
      }
    });
  }
}

void BenchRunner::Prepare(const BenchCase& c, const std::function<void(double)>& progress) {
  BenchSample untimed;
  if (filled_[0] < c.depth) Prefill(filled_[0], c.depth, &untimed, progress);
  for (uint32_t s = 1; s < c.batch; ++s) {
    if (filled_[s] >= c.depth) continue;
    CopyPages(s, filled_[s], c.depth);
    filled_[s] = c.depth;
  }
}

BenchSample BenchRunner::Run(const BenchCase& c) {
  TS_CHECK(filled_[0] >= c.depth && c.batch <= slots_.size());
  return c.kind == BenchKind::kPrefill ? RunPrefill(c) : RunDecode(c);
}

BenchSample BenchRunner::RunPrefill(const BenchCase& c) {
  BenchSample warm_up, sample;
  Prefill(c.depth, c.depth + std::min(c.tokens, options_.chunk_tokens), &warm_up, {});
  uint32_t runs = 0;
  const Clock::time_point start = Clock::now();
  do {
    Prefill(c.depth, c.depth + c.tokens, &sample, {});
    ++runs;
  } while (SecondsSince(start) < kPrefillSecondsMin);
  sample.seconds = SecondsSince(start) / runs;
  sample.bytes /= runs;
  sample.roofline_seconds /= runs;
  sample.steps /= runs;
  return sample;
}

BenchSample BenchRunner::RunDecode(const BenchCase& c) {
  const uint32_t end = c.depth + c.tokens;
  const uint32_t kept_end = std::min(filled_[0], end);
  saved_.clear();
  if (kept_end > c.depth) {
    VisitPages(c.depth, kept_end, [&](uint8_t* page, uint32_t bytes) {
      saved_.insert(saved_.end(), page, page + bytes);
    });
  }
  BenchSample warm_up, sample;
  Decode(c, std::min(c.tokens, kWarmUpSteps), &warm_up);
  const Clock::time_point start = Clock::now();
  Decode(c, c.tokens, &sample);
  sample.seconds = SecondsSince(start);
  size_t at = 0;
  if (kept_end > c.depth) {
    VisitPages(c.depth, kept_end, [&](uint8_t* page, uint32_t bytes) {
      std::memcpy(page, saved_.data() + at, bytes);
      at += bytes;
    });
  }
  // Copies are only remembered up to where they were overwritten.
  for (uint32_t s = 1; s < c.batch; ++s) filled_[s] = std::min(filled_[s], c.depth);
  return sample;
}

}  // namespace tinyserve
