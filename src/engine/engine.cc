// Opening an engine, and what its callers may ask from any thread.
#include "tinyserve/engine.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/machine.h"
#include "engine/engine_impl.h"
#include "engine/engine_options.h"
#include "engine/kv_sizes.h"
#include "engine/request_check.h"
#include "engine/selection_stats.h"
#include "engine/selector_storage.h"
#include "engine/vocab.h"
#include "kernels/targets.h"
#include "step/step_registry.h"

namespace tinyserve {
namespace {

// By counts of multiply-adds, with the three matrices that most feed-forwards have: the sizer
// learns the rest.
PromptCost PromptCostOf(const ModelConfig& config, const Codec& codec) {
  const double heads = config.heads, width = config.head_dim, dim = config.dim;
  const double attention_products = 2.0 * (heads + config.kv_heads) * width * dim;
  const double products = attention_products + 3.0 * dim * config.ffn_dim;
  // Attention multiplies about twice as fast as products of few rows.
  constexpr double kAttentionShare = 0.55;
  // What a chunk of few tokens costs more than one of many, by its reading and converting of all
  // keys before it and by how its rows are cut for threads: as much as the attention of so many
  // tokens. Chunks over coded keys end with their window, so that this decides little there.
  return {.slope = kAttentionShare * 2 * heads * width / products,
          .read_tokens = codec.identity() ? 24.0 : 16.0,
          .window = codec.identity() ? UINT32_MAX : codec.group_tokens,
          .attention_products = attention_products / products};
}

// The text of token `id`, or nothing for -1 (a vocabulary without that token).
std::string Spelled(const VocabSpec& vocab, int64_t id) {
  return id >= 0 ? vocab.tokens[static_cast<size_t>(id)] : std::string();
}

// The engine's own first, then those that requests may name.
std::vector<std::string> SelectorsOf(const EngineOptions& options) {
  std::vector<std::string> selectors{options.selector};
  selectors.insert(selectors.end(), options.metadata.begin(), options.metadata.end());
  return selectors;
}

uint64_t ParametersOf(const GgufFile& file) {
  uint64_t parameters = 0;
  for (const StoredTensor& tensor : file.tensors()) parameters += tensor.rows * tensor.cols;
  return parameters;
}

}  // namespace

// ---- opening ------------------------------------------------------------------------------------

// The tokenizer and the chat template. The file's own vocabulary is let go before weights are
// loaded: it may be tens of megabytes.
Status EngineImpl::OpenText(const GgufFile& file) {
  TS_ASSIGN_OR_RETURN(const VocabSpec vocab, ReadVocab(file));
  TS_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::Create(vocab));
  grammars_ = std::make_unique<Grammars>(tokenizer_.get());
  const std::string source = ReadChatTemplate(file);
  info_.has_chat_template = !source.empty();
  tokenizer_info_ = {.bos_token = Spelled(vocab, vocab.bos),
                     .eos_token = Spelled(vocab, vocab.eos),
                     .add_bos = vocab.add_bos,
                     .add_eos = vocab.add_eos,
                     .end_tokens = tokenizer_->end_tokens(),
                     .chat_template = source.empty() ? DefaultChatTemplate() : source};
  TS_ASSIGN_OR_RETURN(template_,
                      ChatTemplate::Create(tokenizer_info_.chat_template, tokenizer_info_.bos_token,
                                           tokenizer_info_.eos_token));
  return Status();
}

// Cache, executor and scheduler for the model.
Status EngineImpl::OpenExecutor() {
  const EngineOptions& o = options_;
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(o.kv));
  const std::vector<std::string> named = SelectorsOf(o);
  TS_ASSIGN_OR_RETURN(const std::vector<SelectorSpec> selectors, ParseSelectors(named));
  const SelectorSpec& selector = selectors.front();
  const ModelConfig& config = backend_->config();
  const PageSpace space = backend_->space();
  const std::vector<LayerGroup> groups = {
      {.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}};
  info_.selector = selector.resolved;
  info_.kv = codec->name;
  KvCacheOptions planned{.codec = codec,
                         .page_tokens = o.page_tokens,
                         .block_tokens = o.block_tokens,
                         .memory_bytes = 0,
                         .sequences_max = o.sequences_max,
                         .sequence_tokens_max = 0,
                         .uncommitted_tokens_max = o.step_tokens_max};
  TS_RETURN_IF_ERROR(KvCache::CheckOptions(groups, planned));
  const tinyserve_shape shape =
      SelectorShapeOf(config, o.page_tokens, config.context, RecordKindsOf(selectors, *codec));
  TS_ASSIGN_OR_RETURN(planned.kept, NeedsOf(selectors, shape));
  info_.kv_bytes_per_token =
      KvCache::BytesPerToken(groups, *codec, o.page_tokens, space, planned.kept);
  info_.kv_window_bytes = KvCache::WindowBytes(groups, *codec, o.page_tokens, space);
  const uint64_t fixed_bytes = KvCache::FixedBytes(groups, planned, space);
  TS_ASSIGN_OR_RETURN(const KvSizes sizes,
                      ChooseKvSizes(o, config, info_.kv_bytes_per_token, fixed_bytes, *backend_));
  info_.context_tokens = sizes.context_tokens;
  TS_ASSIGN_OR_RETURN(const EvictionKind policy, ParseEvictionKind(o.cache_policy));
  TS_ASSIGN_OR_RETURN(executor_,
                      backend_->CreateExecutor({.kv = o.kv,
                                                .kv_memory_bytes = sizes.memory_bytes,
                                                .page_tokens = o.page_tokens,
                                                .block_tokens = o.block_tokens,
                                                .sequences_max = o.sequences_max,
                                                .sequence_tokens_max = sizes.context_tokens,
                                                .step_tokens_max = o.step_tokens_max,
                                                .selectors = named,
                                                .cache_policy = policy,
                                                .trace = trace_.get()}));
  TS_RETURN_IF_ERROR(executor_->FindSteps(o.step_plugins).status());
  executor_->SetSelectionTimed(o.time_selection);
  executor_->SetShadowShare(o.shadow_check);
  const KvCache& cache = *executor_->cache();
  info_.kv_pool_bytes = cache.pool_bytes();
  stats_.blocks_total = cache.pool(0).total();
  const uint32_t part_tokens = executor_->part_tokens_max();
  chunks_ = std::make_unique<ChunkSizer>(
      PromptCostOf(config, cache.codec()),
      ChunkParts{.layers = part_tokens > 0 ? config.layers : 0, .tokens_max = part_tokens});
  TS_RETURN_IF_ERROR(OpenTuner(selector));
  sessions_ = std::make_unique<SessionTable>(
      SessionLimits{.sessions_max = o.sessions_max, .ttl_seconds = o.session_ttl_seconds});
  scheduler_ = std::make_unique<Scheduler>(SchedulerLimits{.step_tokens_max = o.step_tokens_max,
                                                           .sequences_max = o.sequences_max,
                                                           .blocks = stats_.blocks_total,
                                                           .block_tokens = o.block_tokens});
  return Status();
}

Status EngineImpl::OpenTuner(const SelectorSpec& selector) {
  if (options_.target_itl_ms == 0) return Status();
  // What reads everything, or a number of tokens, has no ratio.
  const bool by_ratio = selector.table != nullptr && selector.budget.tokens == 0;
  const double ratio = by_ratio ? selector.budget.ratio : 0;
  tuner_ = std::make_unique<LatencyTuner>(
      TunerBounds{.target_seconds = options_.target_itl_ms / 1e3,
                  .chunk_tokens = std::max(LatencyTuner::kChunkLeast, options_.step_tokens_max),
                  .ratio = ratio,
                  .ratio_min = std::min(ratio, options_.min_ratio),
                  .sequences = options_.sequences_max});
  const char separator = selector.typed.find(':') == std::string::npos ? ':' : ',';
  for (uint32_t rung = 0; rung < tuner_->rungs(); ++rung) {
    const double at = tuner_->setting_of(rung).ratio;
    const std::string text =
        by_ratio ? fmt::format("{}{}ratio={}", selector.typed, separator, at) : selector.typed;
    TS_ASSIGN_OR_RETURN(tuned_selectors_.emplace_back(), executor_->FindSelector(text));
  }
  stats_.tuning = StatsOf(*tuner_);
  return Status();
}

void EngineImpl::DescribeModel(const GgufFile& file) {
  const ModelConfig& config = backend_->config();
  info_.name = config.name;
  info_.architecture = config.architecture;
  info_.target = backend_->target();
  info_.parameters = ParametersOf(file);
  info_.tensor_bytes = file.tensor_bytes();
  info_.packed_bytes = backend_->packed_bytes();
  info_.step_weight_bytes = backend_->step_weight_bytes();
  info_.layers = config.layers;
  info_.dim = config.dim;
  info_.vocab = config.vocab;
  info_.threads = threads_->threads();
  info_.context_trained = config.context;
}

Result<std::unique_ptr<Engine>> EngineImpl::Open(const EngineOptions& options, bool overlaps,
                                                 bool device_draws) {
  TS_RETURN_IF_ERROR(CheckEngineOptions(options));
  TS_ASSIGN_OR_RETURN(const Compute compute, ParseCompute(options.compute));
  TS_ASSIGN_OR_RETURN(const Kernels* kernels, TargetFor(options.target));
  for (const std::string& path : options.plugins) TS_RETURN_IF_ERROR(LoadPlugin(path));
  // What costs nothing to refuse is refused before anything is read.
  const std::vector<std::string> named = SelectorsOf(options);
  TS_ASSIGN_OR_RETURN(const std::vector<SelectorSpec> selectors, ParseSelectors(named));
  TS_RETURN_IF_ERROR(CheckStepPlugins(options.step_plugins, options.prefix_cache));
  const std::string kv = options.kv.empty() ? KvFor(selectors.front()) : options.kv;
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  for (const SelectorSpec& spec : selectors) TS_RETURN_IF_ERROR(CheckStored(spec, *codec));
  auto engine = std::make_unique<EngineImpl>();
  EngineImpl& e = *engine;
  e.options_ = options;
  e.options_.kv = kv;
  if (!options.trace_path.empty()) {
    TS_ASSIGN_OR_RETURN(e.trace_, Trace::Open(options.trace_path));
  }
  e.threads_ = std::make_unique<ThreadPool>(options.threads != 0 ? options.threads : UsableCores());
  TS_ASSIGN_OR_RETURN(std::unique_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  TS_RETURN_IF_ERROR(e.OpenText(*file));
  TS_ASSIGN_OR_RETURN(e.backend_,
                      OpenBackend(*file, {.name = options.device,
                                          .device = {.index = 0,
                                                     .kv = kv,
                                                     .selectors = named,
                                                     .step_plugins = options.step_plugins,
                                                     .compute = compute,
                                                     .threads = e.threads_.get(),
                                                     .progress = options.on_load_progress},
                                          .kernels = kernels}));
  if (e.tokenizer_->size() > e.backend_->config().vocab) {
    return Status(Code::kCorrupt,
                  fmt::format("the tokenizer has {} tokens, the embedding only {} rows",
                              e.tokenizer_->size(), e.backend_->config().vocab));
  }
  e.DescribeModel(*file);
  TS_RETURN_IF_ERROR(e.OpenExecutor());
  e.overlaps_ = overlaps && e.executor_->begins_ahead();
  e.device_draws_ = device_draws;
  e.thread_ = std::thread([&e] { e.Loop(); });
  return std::unique_ptr<Engine>(std::move(engine));
}

EngineImpl::~EngineImpl() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// ---- callers' side ------------------------------------------------------------------------------

Status EngineImpl::Check(const Request& r) const {
  TS_RETURN_IF_ERROR(CheckRequest(r, info_.vocab, info_.context_tokens));
  if (!r.selector.empty()) {
    TS_ASSIGN_OR_RETURN(const SelectorSpec selector, ParseSelector(r.selector));
    TS_RETURN_IF_ERROR(executor_->CheckSelector(selector));
  }
  if (r.step_plugins) {
    TS_RETURN_IF_ERROR(CheckStepPlugins(*r.step_plugins, options_.prefix_cache));
    TS_RETURN_IF_ERROR(executor_->CheckSteps(*r.step_plugins));
  }
  const uint32_t blocks =
      scheduler_->BlocksFor({.id = 0,
                             .prompt_tokens = static_cast<uint32_t>(r.prompt.size()),
                             .max_tokens = r.max_tokens,
                             .priority = r.priority});
  if (blocks > stats_.blocks_total) {
    return Status(
        Code::kResourceExhausted,
        fmt::format("the request needs {} KV blocks ({} bytes): the pool holds {}", blocks,
                    uint64_t{blocks} * options_.block_tokens * info_.kv_bytes_per_token,
                    stats_.blocks_total));
  }
  return Status();
}

Result<RequestId> EngineImpl::Submit(const Request& request, EventSink sink) {
  TS_RETURN_IF_ERROR(Check(request));
  auto job = std::make_unique<Job>();
  job->request = request;
  job->tokens = std::move(job->request.prompt);
  job->prompt_tokens = static_cast<uint32_t>(job->tokens.size());
  job->sink = std::move(sink);
  job->submitted = NowSeconds();
  RequestId id;
  {
    std::lock_guard lock(mutex_);
    if (stats_.waiting + inbox_.size() >= options_.queue_max) {
      return Status(Code::kResourceExhausted,
                    fmt::format("{} requests wait already: try again later", options_.queue_max));
    }
    id = next_id_++;
    job->id = id;
    live_.emplace(id, false);
    inbox_.push_back(std::move(job));
    ++stats_.requests;
  }
  wake_.notify_one();
  return id;
}

bool EngineImpl::Cancel(RequestId id) {
  {
    std::lock_guard lock(mutex_);
    const auto at = live_.find(id);
    if (at == live_.end()) return false;
    at->second = true;
  }
  wake_.notify_one();
  return true;
}

void EngineImpl::Wait(RequestId id) {
  TS_CHECK(std::this_thread::get_id() != thread_.get_id());
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return live_.find(id) == live_.end(); });
}

Result<std::string> EngineImpl::RenderChat(const std::vector<Message>& messages,
                                           bool add_generation_prompt) const {
  std::vector<ChatMessage> chat;
  for (const Message& m : messages) chat.push_back({.role = m.role, .content = m.content});
  return template_->Render(chat, add_generation_prompt, "");
}

EngineStats EngineImpl::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

std::vector<LayerSelection> EngineImpl::layer_selection() const {
  std::lock_guard lock(mutex_);
  return LayersOf(strip_counts_, backend_->config().kv_heads);
}

std::vector<SessionInfo> EngineImpl::sessions(std::string_view client) const {
  std::lock_guard lock(mutex_);
  return sessions_->List(client, NowSeconds());
}

bool EngineImpl::EndSession(std::string_view client, std::string_view session) {
  std::lock_guard lock(mutex_);
  return sessions_->Erase(client, session, NowSeconds());
}

Result<TraceCounts> EngineImpl::EndTrace() {
  if (trace_ == nullptr) return TraceCounts();
  TS_ASSIGN_OR_RETURN(const TraceReport report, trace_->Close());
  return TraceCounts{.records = report.records, .dropped = report.dropped};
}

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options) {
  return EngineImpl::Open(options);
}

}  // namespace tinyserve
