// The engine: one thread that owns the scheduler and the cache, fed by a bounded inbox, answering
// by events.
#include "tinyserve/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "base/check.h"
#include "base/clock.h"
#include "base/machine.h"
#include "base/trace.h"
#include "engine/chunk_sizer.h"
#include "engine/engine_options.h"
#include "engine/executor.h"
#include "engine/grammar_constraint.h"
#include "engine/job.h"
#include "engine/kv_sizes.h"
#include "engine/request_check.h"
#include "engine/scheduler.h"
#include "engine/selection_stats.h"
#include "engine/selector_storage.h"
#include "engine/vocab.h"
#include "kernels/targets.h"
#include "model/model.h"
#include "select/registry.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace tinyserve {
namespace {

double NowSeconds() { return static_cast<double>(NowNs()) / 1e9; }

// Without a branch, so that it is vectorised: it sees every token's hidden state.
bool AllFinite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones: infinite or no number
  uint32_t bad = 0;
  for (const float value : values) bad |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent;
  return bad == 0;
}

uint32_t TopWanted(const Request& request) {
  return static_cast<uint32_t>(std::max(request.top_logprobs, 0));
}

class EngineImpl : public Engine {
 public:
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options);
  ~EngineImpl() override;

  Result<RequestId> Submit(const Request& request, EventSink sink) override;
  bool Cancel(RequestId id) override;
  void Wait(RequestId id) override;
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool add_special,
                                        bool parse_special) const override {
    return tokenizer_->Encode(text, add_special, parse_special);
  }
  Result<std::string> Detokenize(const std::vector<int32_t>& tokens) const override {
    return tokenizer_->Decode(tokens, /*spell_special=*/false);
  }
  Result<std::string> TokenBytes(int32_t token) const override {
    return tokenizer_->TokenBytes(token, /*spell_special=*/true);
  }
  Result<std::string> RenderChat(const std::vector<Message>& messages,
                                 bool add_generation_prompt) const override;
  Result<std::shared_ptr<const Grammar>> CompileGrammar(GrammarKind kind,
                                                        std::string_view text) const override {
    return grammars_->Compile(kind, text);
  }
  const ModelInfo& info() const override { return info_; }
  const TokenizerInfo& tokenizer_info() const override { return tokenizer_info_; }
  EngineStats stats() const override;
  std::vector<LayerSelection> layer_selection() const override;
  Result<TraceCounts> EndTrace() override;

 private:
  Status OpenText(const GgufFile& file);
  Status OpenExecutor(const Kernels* kernels, Compute compute);
  void DescribeModel(const GgufFile& file, const Kernels* kernels);
  Status Check(const Request& request) const;
  void Loop();
  bool TakeInbox();                    // false: stop
  void PublishStats(size_t arriving);  // REQUIRES: mutex_ is held
  void EndCancelledAndLate();
  void StartAdmitted();
  void PlanStep();  // step_ and batch_, and a record of the engine's load
  Status Prepare(Job* job);
  PrefixMaker MakerOf(const Job& job) const;
  bool Follows(Job* job);
  void Adopt(Job* job);
  void Preempt(Job* job);
  void AddRow(const ScheduledRow& row);
  void ObserveTime(double seconds);
  void Share(const Job& job);
  void RunStep();
  void CountDecode();
  void FinishRow(const ScheduledRow& row, size_t index);
  Status TakePromptLogprobs(Job* job, const ScheduledRow& row, size_t index);
  Status EmitToken(Job* job, const ScheduledRow& row, size_t index);
  Status NotFinite(const char* what, const ScheduledRow& row) const;
  FinishReason AfterToken(Job* job, int32_t token);
  void Finish(Job* job, FinishReason reason, std::string text, Status status = Status());

  EngineOptions options_;
  ModelInfo info_;
  TokenizerInfo tokenizer_info_;
  std::unique_ptr<Trace> trace_;  // or null
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  std::unique_ptr<Grammars> grammars_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Scheduler> scheduler_;

  // Shared with callers, under mutex_.
  mutable std::mutex mutex_;
  std::condition_variable wake_;      // the engine thread waits for work
  std::condition_variable finished_;  // callers wait for a request's end
  std::vector<std::unique_ptr<Job>> inbox_;
  std::unordered_map<RequestId, bool> live_;  // submitted and not finished -> asked to cancel
  RequestId next_id_ = 1;
  bool stopping_ = false;
  EngineStats stats_;
  std::vector<SelectionCounts> strip_counts_;  // as Executor's

  // The engine thread's own.
  std::unordered_map<RequestId, std::unique_ptr<Job>> jobs_;
  std::vector<RequestId> admitted_;  // and not started, in order
  ScheduledStep step_;
  std::unique_ptr<ChunkSizer> chunks_;
  StepBatch batch_;
  uint64_t shadow_checks_ = 0;     // that stats_ tells of
  std::vector<uint32_t> allowed_;  // bits of tokens that a constraint allows
  std::thread thread_;
};

// ---- opening ------------------------------------------------------------------------------------

// The text of token `id`, or nothing for -1 (a vocabulary without that token).
std::string Spelled(const VocabSpec& vocab, int64_t id) {
  return id >= 0 ? vocab.tokens[static_cast<size_t>(id)] : std::string();
}

uint64_t ParametersOf(const GgufFile& file) {
  uint64_t parameters = 0;
  for (const StoredTensor& tensor : file.tensors()) parameters += tensor.rows * tensor.cols;
  return parameters;
}

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
Status EngineImpl::OpenExecutor(const Kernels* kernels, Compute compute) {
  const EngineOptions& o = options_;
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(o.kv));
  TS_ASSIGN_OR_RETURN(const SelectorSpec selector, ParseSelector(o.selector));
  const ModelConfig& config = model_->config();
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
      SelectorShapeOf(config, o.page_tokens, config.context, codec->metadata | selector.needs());
  TS_ASSIGN_OR_RETURN(planned.kept, NeedsOf({&selector, 1}, shape));
  info_.kv_bytes_per_token =
      KvCache::BytesPerToken(groups, *codec, o.page_tokens, kernels, planned.kept);
  info_.kv_window_bytes = KvCache::WindowBytes(groups, *codec, o.page_tokens, kernels);
  const uint64_t fixed_bytes = KvCache::FixedBytes(groups, planned, kernels);
  TS_ASSIGN_OR_RETURN(const KvSizes sizes, ChooseKvSizes(o, config, info_.kv_bytes_per_token,
                                                         fixed_bytes, model_->packed_bytes()));
  info_.context_tokens = sizes.context_tokens;
  TS_ASSIGN_OR_RETURN(executor_, Executor::Create(model_.get(), kernels, compute, threads_.get(),
                                                  {.kv = o.kv,
                                                   .kv_memory_bytes = sizes.memory_bytes,
                                                   .page_tokens = o.page_tokens,
                                                   .block_tokens = o.block_tokens,
                                                   .sequences_max = o.sequences_max,
                                                   .sequence_tokens_max = sizes.context_tokens,
                                                   .step_tokens_max = o.step_tokens_max,
                                                   .selectors = {o.selector},
                                                   .trace = trace_.get()}));
  executor_->SetSelectionTimed(o.time_selection);
  executor_->SetShadowShare(o.shadow_check);
  const KvCache& cache = *executor_->cache();
  info_.kv_pool_bytes = cache.pool_bytes();
  stats_.blocks_total = cache.pool(0).total();
  chunks_ = std::make_unique<ChunkSizer>(o.step_tokens_max);
  scheduler_ = std::make_unique<Scheduler>(SchedulerLimits{.step_tokens_max = o.step_tokens_max,
                                                           .sequences_max = o.sequences_max,
                                                           .blocks = stats_.blocks_total,
                                                           .block_tokens = o.block_tokens});
  return Status();
}

void EngineImpl::DescribeModel(const GgufFile& file, const Kernels* kernels) {
  const ModelConfig& config = model_->config();
  info_.name = config.name;
  info_.architecture = config.architecture;
  info_.target = kernels->name;
  info_.parameters = ParametersOf(file);
  info_.tensor_bytes = file.tensor_bytes();
  info_.packed_bytes = model_->packed_bytes();
  info_.step_weight_bytes = model_->CostOf(1, 1).weight_bytes;
  info_.layers = config.layers;
  info_.vocab = config.vocab;
  info_.threads = threads_->threads();
  info_.context_trained = config.context;
}

Result<std::unique_ptr<Engine>> EngineImpl::Open(const EngineOptions& options) {
  TS_RETURN_IF_ERROR(CheckEngineOptions(options));
  TS_ASSIGN_OR_RETURN(const Compute compute, ParseCompute(options.compute));
  TS_ASSIGN_OR_RETURN(const Kernels* kernels, TargetFor(options.target));
  for (const std::string& path : options.plugins) TS_RETURN_IF_ERROR(LoadSelectorPlugin(path));
  // What costs nothing to refuse is refused before anything is read.
  TS_ASSIGN_OR_RETURN(const SelectorSpec selector, ParseSelector(options.selector));
  const std::string kv = options.kv.empty() ? KvFor(selector) : options.kv;
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(kv));
  TS_RETURN_IF_ERROR(CheckStored(selector, *codec));
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
  TS_ASSIGN_OR_RETURN(e.model_, LoadModel(*file, {.kernels = kernels,
                                                  .compute = compute,
                                                  .threads = e.threads_.get(),
                                                  .progress = options.on_load_progress}));
  if (e.tokenizer_->size() > e.model_->config().vocab) {
    return Status(Code::kCorrupt,
                  fmt::format("the tokenizer has {} tokens, the embedding only {} rows",
                              e.tokenizer_->size(), e.model_->config().vocab));
  }
  e.DescribeModel(*file, kernels);
  TS_RETURN_IF_ERROR(e.OpenExecutor(kernels, compute));
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
  return LayersOf(strip_counts_, model_->config().kv_heads);
}

Result<TraceCounts> EngineImpl::EndTrace() {
  if (trace_ == nullptr) return TraceCounts();
  TS_ASSIGN_OR_RETURN(const TraceReport report, trace_->Close());
  return TraceCounts{.records = report.records, .dropped = report.dropped};
}

// ---- the engine thread --------------------------------------------------------------------------

void EngineImpl::Loop() {
  while (TakeInbox()) {
    EndCancelledAndLate();
    StartAdmitted();
    RunStep();
  }
  while (!jobs_.empty()) Finish(jobs_.begin()->second.get(), FinishReason::kCancelled, "");
}

bool EngineImpl::TakeInbox() {
  std::vector<std::unique_ptr<Job>> taken;
  {
    std::unique_lock lock(mutex_);
    if (jobs_.empty()) wake_.wait(lock, [&] { return stopping_ || !inbox_.empty(); });
    taken.swap(inbox_);
    PublishStats(taken.size());
    if (stopping_) {
      for (std::unique_ptr<Job>& job : taken) jobs_.emplace(job->id, std::move(job));
      return false;
    }
  }
  for (std::unique_ptr<Job>& job : taken) {
    const RequestId id = job->id;
    scheduler_->Submit({.id = id,
                        .prompt_tokens = job->prompt_tokens,
                        .max_tokens = job->request.max_tokens,
                        .priority = job->request.priority,
                        .client = std::hash<std::string>()(job->request.salt)});
    jobs_.emplace(id, std::move(job));
  }
  return true;
}

void EngineImpl::PublishStats(size_t arriving) {
  const BlockPool& pool = executor_->cache()->pool(0);
  stats_.running = scheduler_->running();
  stats_.waiting = scheduler_->waiting() + static_cast<uint32_t>(arriving);
  stats_.blocks_used = pool.used();
  stats_.blocks_used_max = pool.used_max();
  stats_.blocks_cached = pool.idle();
  stats_.steps = executor_->steps();
}

void EngineImpl::EndCancelledAndLate() {
  std::vector<std::pair<Job*, FinishReason>> ended;
  const double now = NowSeconds();
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, job] : jobs_) {
      const double deadline = static_cast<double>(job->request.deadline_ms) / 1e3;
      if (live_.at(id)) {
        ended.emplace_back(job.get(), FinishReason::kCancelled);
      } else if (job->request.deadline_ms != 0 && now - job->submitted > deadline) {
        ended.emplace_back(job.get(), FinishReason::kDeadline);
      }
    }
  }
  for (const auto& [job, reason] : ended)
    Finish(job, reason, job->answer ? job->answer->Finish() : "");
}

void EngineImpl::StartAdmitted() {
  for (RequestId id : scheduler_->Admit()) {
    Job* job = jobs_.at(id).get();
    Status prepared = Prepare(job);
    if (prepared.ok()) {
      admitted_.push_back(id);
    } else {
      Finish(job, FinishReason::kError, "", std::move(prepared));
    }
  }
  std::erase_if(admitted_, [this](RequestId id) {
    Job* job = jobs_.at(id).get();
    if (Follows(job)) return false;
    Adopt(job);
    if (job->started == 0) job->started = NowSeconds();
    job->planned = true;
    scheduler_->Start(id, job->done);
    return true;
  });
}

Status EngineImpl::Prepare(Job* job) {
  Result<SequenceSlot> slot = executor_->cache()->AddSequence();
  TS_CHECK(slot.ok());  // the scheduler admits at most sequences_max
  job->slot = *slot;
  job->running = true;
  if (job->sampler != nullptr) return Status();  // it was preempted
  const std::string& selector = job->request.selector;
  TS_ASSIGN_OR_RETURN(job->selector,
                      executor_->FindSelector(selector.empty() ? options_.selector : selector));
  job->sampler = std::make_unique<Sampler>(job->request.sampling, info_.vocab, job->prompt());
  job->answer = std::make_unique<AnswerText>(job->request.stop);
  return Status();
}

// ---- prompts that begin like others -------------------------------------------------------------

PrefixMaker EngineImpl::MakerOf(const Job& job) const {
  return options_.exact_reuse ? kMadeByPrefill : kMadeByPrefill + 1 + job.selector;
}

// Whether a job waits for one that has started and computes a prompt which begins like its own:
// those of n > 1, or a batch that shares its instructions. What has started waits for nobody.
bool EngineImpl::Follows(Job* job) {
  if (!options_.prefix_cache || job->request.prompt_logprobs) return false;
  const KvCache& cache = *executor_->cache();
  const auto computes = [](const Job& other, uint32_t tokens) {
    return other.planned && other.done < other.prompt_tokens && other.done < tokens;
  };
  if (job->follows != 0) {
    const auto at = jobs_.find(job->follows);
    if (at != jobs_.end() && computes(*at->second, job->followed_tokens)) return true;
    job->follows = 0;
  }
  const std::span<const int32_t> prompt = job->prompt().first(job->prompt_tokens - 1);
  uint32_t best = cache.Adoptable(job->request.salt, prompt, MakerOf(*job));
  for (const auto& [id, other] : jobs_) {
    if (other->request.salt != job->request.salt || !computes(*other, UINT32_MAX)) continue;
    const std::span<const int32_t> theirs = other->prompt();
    const auto end = prompt.begin() + static_cast<long>(std::min(prompt.size(), theirs.size()));
    const auto differ = std::mismatch(prompt.begin(), end, theirs.begin()).first;
    const auto common = static_cast<uint32_t>(differ - prompt.begin());
    const uint32_t shared = common / cache.share_tokens() * cache.share_tokens();
    if (shared <= best || !computes(*other, shared)) continue;
    best = shared;
    job->follows = id;
    job->followed_tokens = shared;
  }
  return job->follows != 0;
}

void EngineImpl::Adopt(Job* job) {
  if (!options_.prefix_cache) return;
  // At least one token is computed: the first of the answer comes from its logits. And prompts
  // whose log-probabilities are wanted are computed whole.
  const bool resumed = job->started != 0, scored = job->request.prompt_logprobs;
  const std::span<const int32_t> wanted = scored && job->generated() == 0
                                              ? std::span<const int32_t>()
                                              : job->prompt().first(job->prompt_tokens - 1);
  // Who computed its prompt itself, does so again.
  const PrefixMaker maker = resumed && job->cached_tokens == 0 ? kMadeByPrefill : MakerOf(*job);
  job->done = executor_->cache()->Adopt(job->slot, job->request.salt, wanted, maker);
  if (resumed) return;
  job->cached_tokens = job->done;
  std::lock_guard lock(mutex_);
  stats_.prefix_queries += wanted.size();
  stats_.prefix_hits += job->cached_tokens;
}

// The scheduler has taken a job's blocks. It begins anew once it is admitted again: its prompt,
// then what it has generated, as generated.
void EngineImpl::Preempt(Job* job) {
  executor_->cache()->RemoveSequence(job->slot);
  job->running = job->planned = false;
  job->done = 0;
  job->follows = 0;
  std::erase(admitted_, job->id);
  if (job->generated() == 0) {
    job->prompt_logprobs.clear();
    job->prompt_top.clear();
  }
  std::lock_guard lock(mutex_);
  ++stats_.preemptions;
}

void EngineImpl::Share(const Job& job) {
  if (!options_.prefix_cache) return;
  executor_->cache()->Share(job.slot, job.tokens, job.prompt_tokens, MakerOf(job));
}

// ---- a step -------------------------------------------------------------------------------------

void EngineImpl::PlanStep() {
  const uint64_t begin_ns = NowNs();
  scheduler_->Plan(chunks_->tokens(), &step_);
  for (RequestId id : step_.preempted) Preempt(jobs_.at(id).get());
  if (step_.rows.empty()) return;
  batch_.Clear();
  for (const ScheduledRow& row : step_.rows) AddRow(row);
  if (trace_ == nullptr) return;
  trace_->Add(TraceSpan{.kind = TraceKind::kSchedule,
                        .label = nullptr,
                        .begin_ns = begin_ns,
                        .end_ns = NowNs(),
                        .args = {step_.rows.size()}});
  trace_->Add(TraceLoad{.at_ns = begin_ns,
                        .running = scheduler_->running(),
                        .waiting = scheduler_->waiting(),
                        .blocks_used = executor_->cache()->pool(0).used()});
}

void EngineImpl::AddRow(const ScheduledRow& row) {
  const Job& job = *jobs_.at(row.id);
  const bool sampled = row.sampled && job.request.max_tokens > 0;
  // Those of a job that has generated are known already.
  const bool scored = row.prompt && job.request.prompt_logprobs && job.generated() == 0;
  batch_.rows.push_back({.slot = job.slot,
                         .first_position = row.first_position,
                         .length = row.length,
                         .first_input = static_cast<uint32_t>(batch_.inputs.size()),
                         .token_class = row.prompt ? TokenClass::kPrompt : TokenClass::kGenerated,
                         .want = scored    ? Want::kLogProbs
                                 : sampled ? Want::kLogits
                                           : Want::kNothing,
                         .top_logprobs = TopWanted(job.request),
                         .selector = job.selector});
  const auto first = job.tokens.begin() + row.first_position;
  batch_.inputs.insert(batch_.inputs.end(), first, first + row.length);
  // The scheduler has promised these blocks.
  const Status room = executor_->cache()->Reserve(job.slot, row.first_position + row.length);
  TS_CHECK(room.ok());
}

void EngineImpl::RunStep() {
  PlanStep();
  if (step_.rows.empty()) return;
  const double begin = NowSeconds();
  executor_->Run(batch_);
  const TraceScope scope(trace_.get(), TraceKind::kAnswer, step_.rows.size());
  CountDecode();
  for (const ScheduledRow& row : step_.rows) {
    executor_->cache()->Commit(jobs_.at(row.id)->slot, row.first_position + row.length);
  }
  for (size_t i = 0; i < step_.rows.size(); ++i) FinishRow(step_.rows[i], i);
  ObserveTime(NowSeconds() - begin);
}

void EngineImpl::ObserveTime(double seconds) {
  uint32_t generated = 0, prompt = 0;
  for (const ScheduledRow& row : step_.rows) (row.prompt ? prompt : generated) += row.length;
  chunks_->Observe(generated, prompt, seconds);
}

void EngineImpl::CountDecode() {
  const SelectionCounts counts = executor_->selection_counts();
  const uint64_t checks = executor_->shadow_checks();
  std::vector<ShadowStats> shadow;
  if (checks != shadow_checks_) shadow = executor_->shadow_stats();
  std::lock_guard lock(mutex_);
  stats_.selection = StatsOf(counts);
  if (checks != shadow_checks_) stats_.shadow = std::move(shadow);
  shadow_checks_ = checks;
  for (const ScheduledRow& row : step_.rows) {
    if (row.prompt || row.length > 1) return;
  }
  stats_.decode_kv_bytes += executor_->cost().kv_bytes;
  stats_.decode_tokens += step_.rows.size();
}

void EngineImpl::FinishRow(const ScheduledRow& row, size_t index) {
  Job* job = jobs_.at(row.id).get();
  {
    std::lock_guard lock(mutex_);
    if (row.prompt) {
      stats_.prompt_tokens += row.length;
    } else if (row.sampled) {
      ++stats_.generated_tokens;  // what is replayed was counted
    }
  }
  // Not left to the logits: int8 activations may give finite ones for states that are no numbers.
  if (!AllFinite(executor_->hidden(index))) {
    return Finish(job, FinishReason::kError, job->answer->Finish(),
                  NotFinite("hidden states", row));
  }
  job->done = row.first_position + row.length;
  Share(*job);
  if (row.prompt && job->generated() == 0) {
    if (job->request.prompt_logprobs) {
      Status taken = TakePromptLogprobs(job, row, index);
      if (!taken.ok()) return Finish(job, FinishReason::kError, "", std::move(taken));
    }
    TokenEvent event;
    event.kind = TokenEvent::Kind::kPrefill;
    event.request = job->id;
    event.done = job->done;
    event.total = job->prompt_tokens;
    job->sink(event);
  }
  if (!row.sampled) return;
  if (job->request.max_tokens == 0) return Finish(job, FinishReason::kLength, "");
  Status emitted = EmitToken(job, row, index);
  if (!emitted.ok()) Finish(job, FinishReason::kError, job->answer->Finish(), std::move(emitted));
}

// What damaged weights give, or values beyond the types that they are computed and kept in.
Status EngineImpl::NotFinite(const char* what, const ScheduledRow& row) const {
  return Status(Code::kCorrupt,
                fmt::format("{} at positions {} to {} are not finite: the model's weights are "
                            "damaged, or too large for compute {} with {} keys and values",
                            what, row.first_position, row.first_position + row.length - 1,
                            options_.compute, info_.kv));
}

Status EngineImpl::TakePromptLogprobs(Job* job, const ScheduledRow& row, size_t index) {
  const std::span<const float> inside = executor_->logprobs(index);
  job->prompt_logprobs.insert(job->prompt_logprobs.end(), inside.begin(), inside.end());
  const std::span<const std::vector<TokenLogprob>> top = executor_->top_logprobs(index);
  job->prompt_top.insert(job->prompt_top.end(), top.begin(), top.end());
  for (const float logprob : inside) {
    if (!std::isfinite(logprob)) return NotFinite("log-probabilities", row);
  }
  if (job->done == job->prompt_tokens) return Status();
  // The next chunk's first token follows from this chunk's last.
  const std::span<const float> logits = executor_->logits(index);
  const int32_t next = job->tokens[row.first_position + row.length];
  const float log_sum = LogSumExp(logits);
  job->prompt_logprobs.push_back(logits[static_cast<size_t>(next)] - log_sum);
  job->prompt_top.push_back(TopLogprobs(logits, log_sum, TopWanted(job->request)));
  if (!std::isfinite(job->prompt_logprobs.back())) return NotFinite("log-probabilities", row);
  return Status();
}

Status EngineImpl::EmitToken(Job* job, const ScheduledRow& row, size_t index) {
  const std::span<float> logits = executor_->logits(index);
  TokenEvent event;
  float log_sum = 0;
  std::vector<float> raw;  // sampling changes the logits; log-probabilities are the model's own
  if (job->request.top_logprobs >= 0) {
    log_sum = LogSumExp(logits);
    raw.assign(logits.begin(), logits.end());
  }
  const bool early = job->generated() < job->request.min_tokens;
  const std::span<const int32_t> banned =
      early ? std::span<const int32_t>(tokenizer_->end_tokens()) : std::span<const int32_t>();
  if (job->request.constraint) {
    TS_RETURN_IF_ERROR(Constrain(job->request.constraint.get(), &allowed_, logits));
  }
  const int32_t token = job->sampler->Sample(logits, row.first_position + row.length, banned);
  // The sampler prefers every finite logit to one that is none.
  if (!std::isfinite(logits[static_cast<size_t>(token)]) || !std::isfinite(log_sum)) {
    return NotFinite("logits", row);
  }
  job->sampler->Observe(token);
  executor_->SetSampled(index, token);
  job->tokens.push_back(token);
  job->last_token = NowSeconds();
  if (job->first_token == 0) job->first_token = job->last_token;
  event.kind = TokenEvent::Kind::kToken;
  event.request = job->id;
  event.token = token;
  if (!raw.empty()) {
    event.logprob = raw[static_cast<size_t>(token)] - log_sum;
    event.top = TopLogprobs(raw, log_sum, TopWanted(job->request));
  }
  const FinishReason reason = AfterToken(job, token);
  const bool end_token = reason == FinishReason::kStop && !job->answer->stopped();
  if (!end_token) {
    if (job->request.constraint) TS_RETURN_IF_ERROR(job->request.constraint->Accept(token));
    const Result<std::string> bytes = tokenizer_->TokenBytes(token, /*spell_special=*/false);
    if (bytes.ok()) event.text = job->answer->Push(*bytes);
  }
  job->sink(event);
  if (reason != FinishReason::kNone || job->answer->stopped()) {
    Finish(job, job->answer->stopped() ? FinishReason::kStop : reason, job->answer->Finish());
  }
  return Status();
}

FinishReason EngineImpl::AfterToken(Job* job, int32_t token) {
  const Request& r = job->request;
  const std::vector<int32_t>& ends = tokenizer_->end_tokens();
  const bool end = !r.ignore_eos && std::find(ends.begin(), ends.end(), token) != ends.end();
  const bool stop =
      std::find(r.stop_tokens.begin(), r.stop_tokens.end(), token) != r.stop_tokens.end();
  if ((end || stop) && job->generated() > r.min_tokens) return FinishReason::kStop;
  return job->generated() >= r.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

void EngineImpl::Finish(Job* job, FinishReason reason, std::string text, Status status) {
  const RequestId id = job->id;
  {
    std::lock_guard lock(mutex_);
    strip_counts_ = executor_->strip_counts();
  }
  scheduler_->Remove(id);
  std::erase(admitted_, id);
  if (job->running) executor_->cache()->RemoveSequence(job->slot);
  TokenEvent event;
  event.kind = TokenEvent::Kind::kFinished;
  event.request = id;
  event.text = std::move(text);
  event.finish = reason;
  event.status = std::move(status);
  event.prompt_logprobs = std::move(job->prompt_logprobs);
  event.prompt_top = std::move(job->prompt_top);
  Usage& usage = event.usage;
  usage.prompt_tokens = job->prompt_tokens;
  usage.cached_tokens = job->cached_tokens;
  usage.completion_tokens = job->generated();
  const double now = NowSeconds();
  usage.queue_seconds = (job->started != 0 ? job->started : now) - job->submitted;
  if (job->started != 0)
    usage.prefill_seconds = (job->first_token != 0 ? job->first_token : now) - job->started;
  if (job->first_token != 0) {
    usage.decode_seconds = job->last_token - job->first_token;
    usage.first_token_seconds = job->first_token - job->submitted;
  }
  if (trace_ != nullptr) trace_->Add(LifeOf(*job, reason, NowNs()));
  job->sink(event);
  jobs_.erase(id);
  {
    std::lock_guard lock(mutex_);
    live_.erase(id);
    PublishStats(0);
  }
  finished_.notify_all();
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::Open(const EngineOptions& options) {
  return EngineImpl::Open(options);
}

}  // namespace tinyserve
