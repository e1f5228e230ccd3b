#include "engine/cpu_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "engine/logprobs.h"
#include "engine/selection_stats.h"
#include "engine/selector_storage.h"

namespace tinyserve {
namespace {

// Rows whose logits are computed at a time; bounds the memory of kLogProbs over long rows.
constexpr uint32_t kScoreRows = 64;

// Tokens of a prompt row that goes through the layers by and by: of 128 each costs about what it
// does of 512, of 64 a tenth to two fifths more, of 40 half to four fifths more (measured in
// chunks over f16, two threads: bench/RESULTS.md).
constexpr uint32_t kPartTokens = 128;

constexpr uint32_t kSelectorsMax = 64;  // different ones, that requests may ask for

// Multiply-adds of one token, without its logits.
uint64_t ProductsOf(const Model& model) {
  const ProductCost cost = model.CostOf(1, 0);
  return std::accumulate(std::begin(cost.multiply_adds), std::end(cost.multiply_adds), uint64_t{0});
}

// Without a branch, so that it is vectorised: it sees every token's hidden state.
bool AllFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones: infinite or no number
  uint32_t bad = 0;
  for (const float value : values) bad |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent;
  return bad == 0;
}

}  // namespace

Result<std::unique_ptr<CpuExecutor>> CpuExecutor::Create(const Model* model, const Kernels* kernels,
                                                         Compute compute, ThreadPool* threads,
                                                         const ExecutorOptions& options) {
  TS_RETURN_IF_ERROR(CheckSizes(options));
  std::unique_ptr<CpuExecutor> e(new CpuExecutor);
  e->options_ = options;
  e->model_ = model;
  e->kernels_ = kernels;
  e->compute_ = compute;
  e->threads_ = threads;
  const ModelConfig& config = model->config();
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(options.kv));
  const std::vector<LayerGroup> groups = {
      {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}};
  TS_ASSIGN_OR_RETURN(const std::vector<SelectorSpec> specs, ParseSelectors(options.selectors));
  for (const SelectorSpec& spec : specs) TS_RETURN_IF_ERROR(CheckStored(spec, *codec));
  KvCacheOptions cache = CacheOptionsOf(options, codec, config, ProductsOf(*model));
  TS_RETURN_IF_ERROR(KvCache::CheckOptions(groups, cache));
  e->shape_ = SelectorShapeOf(config, options.page_tokens, options.sequence_tokens_max,
                              RecordKindsOf(specs, *codec));
  TS_ASSIGN_OR_RETURN(cache.kept, NeedsOf(specs, e->shape_, &e->summaries_));
  TS_ASSIGN_OR_RETURN(e->cache_, KvCache::Create(groups, cache, kernels));
  const AttentionOptions attention{.group_of_layer = std::vector<uint32_t>(config.layers, 0),
                                   .heads = config.heads,
                                   .scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim)),
                                   .compute = compute,
                                   .rows_max = options.step_tokens_max};
  TS_ASSIGN_OR_RETURN(e->attention_,
                      Attention::Create(attention, e->cache_.get(), kernels, threads));
  e->attention_->SetTrace(options.trace);
  for (const std::string& text : options.selectors) {
    TS_RETURN_IF_ERROR(e->FindSelector(text).status());
  }
  TS_ASSIGN_OR_RETURN(
      e->step_, Step::Create(model->Sizes(options.step_tokens_max, kScoreRows), kernels, threads));
  // Its tokens have room in a step beside any number of sequences.
  const uint32_t part_tokens =
      std::min(kPartTokens, options.step_tokens_max - options.sequences_max);
  TS_ASSIGN_OR_RETURN(e->part_, PromptPart::Create(model, kernels, threads, e->attention_.get(),
                                                   options.trace, part_tokens));
  const uint64_t row_bytes = uint64_t{config.vocab} * sizeof(float);
  if (options.logits_max == 0) e->options_.logits_max = options.sequences_max;
  TS_ASSIGN_OR_RETURN(e->logits_, Buffer::Allocate(e->options_.logits_max * row_bytes));
  TS_ASSIGN_OR_RETURN(e->scoring_, Buffer::Allocate(kScoreRows * row_bytes));
  e->exits_ = std::make_unique<EarlyExits>(model, threads, e->scoring_.as<float>(), kScoreRows);
  e->tokens_.reserve(options.step_tokens_max);
  e->positions_.reserve(options.step_tokens_max);
  for (auto* v : {&e->wanted_, &e->first_row_, &e->length_}) v->reserve(options.step_tokens_max);
  e->runs_.reserve(options.step_tokens_max);
  e->logits_index_.reserve(options.step_tokens_max);
  e->logits_count_.reserve(options.step_tokens_max);
  e->reads_.reserve(options.step_tokens_max);
  e->sampled_.reserve(options.step_tokens_max);
  return e;
}

void CpuExecutor::ResolveInputs(const StepBatch& batch) {
  tokens_.clear();
  positions_.clear();
  runs_.clear();
  first_row_.clear();
  length_.clear();
  for (const StepRow& row : batch.rows) {
    const uint32_t first = static_cast<uint32_t>(tokens_.size());
    first_row_.push_back(first);
    length_.push_back(row.length);
    const StepPlugins* steps = steps_of(row.steps);
    runs_.push_back({.slot = row.slot,
                     .first_row = first,
                     .rows = row.length,
                     .first_position = row.first_position - cache_->dropped_tokens(row.slot),
                     .token_class = row.token_class,
                     .selector = row.selector,
                     .measure_every = steps != nullptr ? steps->measure_every() : 0});
    for (uint32_t i = 0; i < row.length; ++i) {
      const StepInput input = batch.inputs[row.first_input + i];
      const int32_t token = input >= 0 ? input : sampled_[static_cast<size_t>(~input)];
      TS_CHECK(token >= 0 && static_cast<uint32_t>(token) < model_->config().vocab);
      tokens_.push_back(token);
      positions_.push_back(row.first_position + i);
    }
  }
  TS_CHECK(!tokens_.empty() && tokens_.size() <= options_.step_tokens_max);
}

void CpuExecutor::Run(const StepBatch& batch, const LayerHook& hook) {
  uint64_t tokens[2] = {};  // by TokenClass
  for (const StepRow& row : batch.rows) tokens[static_cast<size_t>(row.token_class)] += row.length;
  const TraceScope scope(options_.trace, TraceKind::kStep, tokens[0], tokens[1], batch.rows.size());
  ResolveInputs(batch);
  sampled_.assign(batch.rows.size(), -1);
  ran_part_ = !batch.rows.back().part.empty();
  logits_rows_ = 0;
  PlanLogits(batch);
  const bool part_wanted = ran_part_ && logits_index_.back() >= 0;
  const size_t others = part_wanted ? static_cast<size_t>(logits_index_.back()) : wanted_.size();
  RunRows(batch, hook);
  ComputeLogits(0, others);
  // Last, so that it has what the step's time leaves.
  if (ran_part_) RunPart(batch);
  if (part_wanted && part_->whole()) ComputeLogits(others, wanted_.size());
  ComputeLogProbs(batch);
  ++steps_;
}

void CpuExecutor::RunRows(const StepBatch& batch, const LayerHook& hook) {
  const size_t rows = tokens_.size() - part_rows();
  step_->Begin(std::span(tokens_).first(rows), std::span(positions_).first(rows), attention_.get());
  reads_.assign(batch.rows.size(), {});
  kv_bytes_ = multiply_adds_[0] = multiply_adds_[1] = 0;
  if (rows == 0) return;
  attention_->Plan(std::span(runs_).first(runs_.size() - (ran_part_ ? 1 : 0)));
  RunLayers(batch, hook);
  kv_bytes_ = attention_->kv_bytes();
  for (const TokenClass c : {TokenClass::kPrompt, TokenClass::kGenerated})
    multiply_adds_[static_cast<size_t>(c)] = attention_->multiply_adds(c);
  for (size_t r = 0; r < runs_.size(); ++r) {
    if (runs_[r].token_class == TokenClass::kGenerated)
      reads_[r] = attention_->ReadsOf(static_cast<uint32_t>(r));
  }
}

void CpuExecutor::RunPart(const StepBatch& batch) {
  const size_t first = first_row_.back();
  part_->Run(runs_.back(), std::span(tokens_).subspan(first), std::span(positions_).subspan(first),
             batch.rows.back().part, batch.part_until_ns);
  if (part_->whole()) step_->Append(part_->states());
}

void CpuExecutor::RunLayers(const StepBatch& batch, const LayerHook& hook) {
  const TraceScope scope(options_.trace, TraceKind::kForward);
  plugins_of_row_.assign(tokens_.size(), nullptr);
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    if (batch.rows[r].token_class != TokenClass::kGenerated) continue;
    std::fill_n(plugins_of_row_.begin() + first_row_[r], length_[r], steps_of(batch.rows[r].steps));
  }
  exits_->Begin(step_.get(), plugins_of_row_, positions_);
  if (!exits_->any()) return model_->Forward(step_.get(), hook);
  logits_of_row_.assign(tokens_.size(), -1);
  for (size_t i = 0; i < wanted_.size(); ++i) logits_of_row_[wanted_[i]] = static_cast<int32_t>(i);
  const uint64_t vocab = model_->config().vocab;
  const auto keep = [&](uint32_t row, const float* logits) {
    const int32_t index = logits_of_row_[row];
    if (index < 0) return;
    std::copy_n(logits, vocab, logits_.as<float>() + static_cast<uint64_t>(index) * vocab);
    have_logits_[static_cast<size_t>(index)] = 1;
  };
  const auto after_layer = [&](uint32_t l, const float* x, uint32_t rows, uint32_t dim) {
    if (hook) hook(l, x, rows, dim);
    exits_->AfterLayer(l + 1, keep);
  };
  model_->Forward(step_.get(), std::cref(after_layer));  // by reference: a copy would be allocated
  step_->Rejoin();
}

void CpuExecutor::PlanLogits(const StepBatch& batch) {
  wanted_.clear();
  logits_index_.clear();
  logits_count_.clear();
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const Want want = batch.rows[r].want;
    const bool last = want == Want::kLogits || want == Want::kLogProbs;
    const bool every = want == Want::kEveryLogits;
    logits_index_.push_back(last || every ? static_cast<int32_t>(wanted_.size()) : -1);
    logits_count_.push_back(every ? length_[r] : 1);
    for (uint32_t i = every ? 0 : length_[r] - 1; (last || every) && i < length_[r]; ++i)
      wanted_.push_back(first_row_[r] + i);
  }
  TS_CHECK(wanted_.size() <= options_.logits_max);
  have_logits_.assign(wanted_.size(), 0);
}

void CpuExecutor::ComputeLogits(size_t first, size_t end) {
  const TraceScope scope(options_.trace, TraceKind::kLogits, end - first);
  const uint64_t vocab = model_->config().vocab;
  for (size_t i = first; i < end;) {
    if (have_logits_[i] != 0) {
      ++i;
      continue;
    }
    size_t n = 1;
    while (n < kScoreRows && i + n < end && have_logits_[i + n] == 0) ++n;
    model_->Logits(step_.get(), std::span(wanted_).subspan(i, n), logits_.as<float>() + i * vocab);
    i += n;
  }
  logits_rows_ += end - first;
}

void CpuExecutor::ComputeLogProbs(const StepBatch& batch) {
  const uint64_t vocab = model_->config().vocab;
  logprobs_.resize(std::max(logprobs_.size(), batch.rows.size()));
  top_logprobs_.resize(logprobs_.size());
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    logprobs_[r].clear();
    top_logprobs_[r].clear();
    const bool whole = batch.rows[r].part.empty() || part_->whole();
    if (batch.rows[r].want != Want::kLogProbs || !whole) continue;
    const uint32_t targets = length_[r] - 1;
    logprobs_[r].resize(targets);
    top_logprobs_[r].resize(targets);
    for (uint32_t i = 0; i < targets; i += kScoreRows) {
      const uint32_t n = std::min(kScoreRows, targets - i);
      wanted_.clear();
      for (uint32_t j = 0; j < n; ++j) wanted_.push_back(first_row_[r] + i + j);
      float* scores = scoring_.as<float>();
      model_->Logits(step_.get(), wanted_, scores);
      threads_->For(n, [&](uint32_t j, uint32_t) {
        const std::span<const float> row(scores + j * vocab, vocab);
        const float log_sum = LogSumExp(row);
        logprobs_[r][i + j] = row[tokens_[first_row_[r] + i + j + 1]] - log_sum;
        top_logprobs_[r][i + j] = TopLogprobs(row, log_sum, batch.rows[r].top_logprobs);
      });
    }
    logits_rows_ += targets;
  }
}

std::span<float> CpuExecutor::logits(size_t row) {
  TS_CHECK(logits_index_[row] >= 0);
  const uint64_t vocab = model_->config().vocab;
  return {logits_.as<float>() + static_cast<uint64_t>(logits_index_[row]) * vocab,
          vocab * logits_count_[row]};
}

std::vector<ShadowStats> CpuExecutor::shadow_stats() const {
  std::vector<ShadowStats> stats;
  const std::vector<ShadowFigures>& figures = attention_->shadow_figures();
  for (size_t i = 0; i < figures.size(); ++i) {
    if (figures[i].missed_mass.count() > 0)
      stats.push_back(StatsOf(selectors_[i - 1]->spec().resolved, figures[i]));
  }
  return stats;
}

uint64_t CpuExecutor::shadow_checks() const {
  uint64_t checks = 0;
  for (const ShadowFigures& figures : attention_->shadow_figures())
    checks += figures.missed_mass.count();
  return checks;
}

Result<uint32_t> CpuExecutor::FindSelector(const std::string& text) {
  TS_ASSIGN_OR_RETURN(const SelectorSpec spec, ParseSelector(text));
  if (spec.table == nullptr) return 0u;
  for (size_t i = 0; i < selectors_.size(); ++i) {
    if (selectors_[i]->spec().resolved == spec.resolved) return static_cast<uint32_t>(i + 1);
  }
  TS_RETURN_IF_ERROR(CheckStored(spec, cache_->codec()));
  TS_ASSIGN_OR_RETURN(const SummaryOffsets at, PlaceOf(spec, shape_, cache_->kept(), summaries_));
  if (selectors_.size() >= kSelectorsMax) {
    return Status(Code::kResourceExhausted,
                  fmt::format("selector '{}': {} different ones are open already, the most that "
                              "are allowed",
                              text, kSelectorsMax));
  }
  TS_ASSIGN_OR_RETURN(std::unique_ptr<Selector> selector, Selector::Open(spec, shape_, at));
  selectors_.push_back(std::move(selector));
  attention_->AddSelector(selectors_.back().get());
  return static_cast<uint32_t>(selectors_.size());
}

Result<uint32_t> CpuExecutor::FindSteps(std::span<const std::string> texts) {
  TS_ASSIGN_OR_RETURN(const std::vector<StepSpec> specs, ParseStepPlugins(texts));
  return step_sets_.Find(specs, model_->config());
}

uint32_t CpuExecutor::Prune(SequenceSlot slot, uint32_t steps) {
  const StepPlugins* plugins = steps_of(steps);
  if (plugins == nullptr || !plugins->prunes()) return 0;
  const uint32_t held = cache_->committed_tokens(slot), unit_tokens = cache_->share_tokens();
  const uint32_t full = cache_->codec().WindowBegin(held) / unit_tokens;
  if (full < 2) return 0;
  std::vector<float> mass(full - 1, std::numeric_limits<float>::infinity());
  const std::span<const float> known = attention_->unit_masses(slot);
  std::copy_n(known.begin(), std::min(known.size(), mass.size()), mass.begin());
  std::vector<uint8_t> drop(mass.size());
  const bool any = plugins->Prune({.struct_size = 0,
                                   .position = held + cache_->dropped_tokens(slot),
                                   .held = held,
                                   .unit_tokens = unit_tokens,
                                   .n_units = static_cast<uint32_t>(mass.size()),
                                   .mass = mass.data()},
                                  drop);
  if (!any) return 0;
  std::vector<uint32_t> units;
  for (uint32_t unit = 0; unit < drop.size(); ++unit) {
    if (drop[unit] != 0) units.push_back(unit);
  }
  cache_->Drop(slot, units);
  attention_->DropUnits(slot, units);
  return static_cast<uint32_t>(units.size()) * unit_tokens;
}

uint32_t CpuExecutor::MakerOf(uint32_t selector, uint32_t steps) const {
  return steps * (kSelectorsMax + 1) + selector;
}

Status CpuExecutor::CheckSelector(const SelectorSpec& spec) const {
  TS_RETURN_IF_ERROR(CheckStored(spec, cache_->codec()));
  return PlaceOf(spec, shape_, cache_->kept(), summaries_).status();
}

std::string CpuExecutor::selector_resolved(uint32_t selector) const {
  return selector == 0 ? "full" : selectors_[selector - 1]->spec().resolved;
}

bool CpuExecutor::finite(size_t row) const { return AllFinite(hidden(row)); }

std::span<const float> CpuExecutor::hidden(size_t row) const {
  const uint64_t dim = model_->config().dim;
  return {step_->x() + first_row_[row] * dim, length_[row] * dim};
}

void CpuExecutor::FinalState(size_t row, uint32_t i, std::span<float> out) const {
  TS_CHECK(i < length_[row] && out.size() == model_->config().dim);
  model_->FinalState(*step_, first_row_[row] + i, out.data());
}

StepCost CpuExecutor::cost() const {
  const DotKind prompt_dot = compute_ == Compute::kFast ? kernels_->prompt_dot : DotKind::kF32;
  StepCost cost;
  if (ran_part_) cost = part_->cost(prompt_dot);
  const size_t others = tokens_.size() - part_rows();
  ProductCost products = model_->CostOf(others, logits_rows_);
  if (others > 0 && exits_->any())
    products = model_->CostOfExits(exits_->rows_of_layer(), others, logits_rows_ + exits_->asked());
  cost.weight_bytes += products.weight_bytes;
  for (uint32_t kind = 0; kind < kDotKinds; ++kind)
    cost.multiply_adds[kind] += products.multiply_adds[kind];
  cost.kv_bytes += kv_bytes_;
  const auto add = [&](DotKind kind, TokenClass token_class) {
    cost.multiply_adds[static_cast<uint32_t>(kind)] +=
        multiply_adds_[static_cast<size_t>(token_class)];
  };
  add(prompt_dot, TokenClass::kPrompt);
  add(DotKind::kF32, TokenClass::kGenerated);
  return cost;
}

}  // namespace tinyserve
