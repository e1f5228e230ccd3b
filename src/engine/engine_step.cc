// One step of the engine thread: what runs, and what its requests are told of it.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "engine/engine_impl.h"
#include "engine/logprobs.h"
#include "engine/selection_stats.h"

namespace tinyserve {
namespace {

uint32_t TopWanted(const Request& request) {
  return static_cast<uint32_t>(std::max(request.top_logprobs, 0));
}

}  // namespace

void EngineImpl::PlanStep() {
  const uint64_t begin_ns = NowNs();
  const uint32_t chunk_max = tuner_ != nullptr ? tuner_->setting().chunk_tokens : UINT32_MAX;
  const uint32_t depth = scheduler_->prompt_depth(), generating = scheduler_->generating();
  const PromptBudget budget = chunks_->BudgetBeside(generating, depth, chunk_max, touch_seconds_);
  scheduler_->Plan(budget, &step_);
  for (RequestId id : step_.preempted) Preempt(jobs_.at(id).get());
  if (step_.rows.empty()) return;
  FillBatch(step_, &batch_);
  // Where the system holds a step up, the streams are not to wait for the rest of a part, too.
  if (generating > 0 && !step_.rows.back().part.empty()) {
    const double seconds = chunks_->SecondsWith(budget, depth);
    batch_.part_until_ns = begin_ns + static_cast<uint64_t>(seconds * 1e9);
  }
  TracePlan(begin_ns, step_.rows.size());
}

// The step after step_, where that draws all of its tokens by itself: their places go in, for
// nobody knows them yet.
bool EngineImpl::BeginNext() {
  const uint64_t begin_ns = NowNs();
  // What may come after a token that a mask holds for, only that token tells.
  const bool drawn = std::all_of(batch_.rows.begin(), batch_.rows.end(), [](const StepRow& row) {
    return row.draw.on_device && row.mask_slot < 0;
  });
  if (!drawn || !scheduler_->OnlyGenerates()) return false;
  scheduler_->Plan(PromptBudget({}, 0), &next_step_);
  TS_CHECK(next_step_.preempted.empty());
  FillBatch(next_step_, &next_batch_);
  TracePlan(begin_ns, next_step_.rows.size());
  executor_->BeginStep(next_batch_);
  return true;
}

void EngineImpl::TracePlan(uint64_t begin_ns, size_t rows) {
  if (trace_ == nullptr) return;
  trace_->Add(TraceSpan{.kind = TraceKind::kSchedule,
                        .label = nullptr,
                        .begin_ns = begin_ns,
                        .end_ns = NowNs(),
                        .args = {rows}});
  trace_->Add(TraceLoad{.at_ns = begin_ns,
                        .running = scheduler_->running(),
                        .waiting = scheduler_->waiting(),
                        .blocks_used = executor_->cache()->pool(0).used()});
}

void EngineImpl::FillBatch(const ScheduledStep& step, StepBatch* batch) {
  batch->Clear();
  for (const ScheduledRow& row : step.rows) AddRow(row, batch);
  MaskRows(step, batch);
}

// Masks of rows that are drawn under constraints. Where one cannot be had, the host draws, and says
// why.
void EngineImpl::MaskRows(const ScheduledStep& step, StepBatch* batch) {
  std::vector<size_t> rows;  // by mask
  for (size_t i = 0; i < batch->rows.size(); ++i) {
    if (!batch->rows[i].draw.on_device || !jobs_.at(step.rows[i].id)->request.constraint) continue;
    batch->rows[i].mask_slot = static_cast<int32_t>(rows.size());
    rows.push_back(i);
  }
  if (rows.empty()) return;
  const size_t words = (info_.vocab + size_t{31}) / 32;
  batch->masks.assign(rows.size() * words, 0);
  threads_->For(static_cast<uint32_t>(rows.size()), [&](uint32_t slot, uint32_t) {
    const std::span<uint32_t> mask(batch->masks.data() + slot * words, words);
    TokenConstraint* constraint = jobs_.at(step.rows[rows[slot]].id)->request.constraint.get();
    if (AllowedBy(constraint, mask).ok()) return;
    batch->rows[rows[slot]].draw = DrawRule();
    batch->rows[rows[slot]].mask_slot = -1;
  });
}

void EngineImpl::AddRow(const ScheduledRow& row, StepBatch* batch) {
  const Job& job = *jobs_.at(row.id);
  const bool sampled = Answers(row);
  // Those of a job that has generated are known already.
  const bool scored = row.done && row.prompt && job.request.prompt_logprobs && job.generated() == 0;
  batch->rows.push_back({.slot = job.slot,
                         .first_position = row.first_position,
                         .length = row.length,
                         .first_input = static_cast<uint32_t>(batch->inputs.size()),
                         .token_class = row.prompt ? TokenClass::kPrompt : TokenClass::kGenerated,
                         .want = scored    ? Want::kLogProbs
                                 : sampled ? Want::kLogits
                                           : Want::kNothing,
                         .top_logprobs = TopWanted(job.request),
                         .selector = job.selector,
                         .steps = job.steps,
                         .part = row.part});
  const bool known = row.first_position < job.tokens.size();
  // What is not known yet has been generated when the next token is drawn.
  if (sampled && !scored)
    batch->rows.back().draw = RuleFor(job, job.generated() + (known ? 0 : 1), &batch->edits);
  if (known) {
    const auto first = job.tokens.begin() + row.first_position;
    batch->inputs.insert(batch->inputs.end(), first, first + row.length);
  } else {  // step_ draws it
    const auto at = std::find_if(step_.rows.begin(), step_.rows.end(),
                                 [&](const ScheduledRow& before) { return before.id == row.id; });
    TS_CHECK(at != step_.rows.end());
    batch->inputs.push_back(~static_cast<StepInput>(at - step_.rows.begin()));
  }
  // The scheduler has promised these blocks.
  const Status room =
      executor_->cache()->Reserve(job.slot, HeldOf(job, row.first_position + row.length));
  TS_CHECK(room.ok());
}

DrawRule EngineImpl::RuleFor(const Job& job, uint32_t generated,
                             std::vector<LogitEdit>* edits) const {
  const DrawLimits limits = executor_->draw_limits();
  const std::span<const int32_t> banned = BannedAfter(job, generated);
  const bool fits = job.sampler->edits() + banned.size() <= limits.edits_max;
  if (!limits.draws || !device_draws_ || job.steps != 0 || !fits) return DrawRule();
  DrawRule rule = job.sampler->RuleWith(banned, edits);
  rule.top_logprobs = job.request.top_logprobs;
  return rule;
}

std::span<const int32_t> EngineImpl::BannedAfter(const Job& job, uint32_t generated) const {
  if (generated >= job.request.min_tokens) return {};
  return tokenizer_->end_tokens();
}

void EngineImpl::RunStep() {
  if (begun_) {
    DropEnded();
  } else {
    PlanStep();
    if (step_.rows.empty()) return;
    step_begin_ = NowSeconds();
  }
  const Status ran = ComputeStep();
  if (ran.ok()) {
    AnswerStep();
  } else {
    FailStep(ran);
  }
  if (!begun_) return;
  std::swap(step_, next_step_);
  std::swap(batch_, next_batch_);
}

Status EngineImpl::ComputeStep() {
  if (!overlaps_) return executor_->RunStep(batch_);
  if (!begun_) executor_->BeginStep(batch_);
  begun_ = BeginNext();
  return executor_->FinishStep();
}

// A request may have ended by the token before, or from outside, after its next row was begun. Its
// pages may be others' by now: what the row writes there, they overwrite.
void EngineImpl::DropEnded() {
  for (size_t i = step_.rows.size(); i-- > 0;) {
    if (jobs_.find(step_.rows[i].id) != jobs_.end()) continue;
    executor_->DropRow(i);
    step_.rows.erase(step_.rows.begin() + static_cast<std::ptrdiff_t>(i));
    batch_.rows.erase(batch_.rows.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

void EngineImpl::AnswerStep() {
  if (step_.rows.empty()) return;
  bool held_up = false;
  if (ScheduledRow& last = step_.rows.back(); !last.part.empty()) {
    last.part.end = executor_->part_sublayer();
    last.done = scheduler_->CameTo(last.part.end);
    held_up = last.part.empty();
  }
  if (held_up) step_.rows.pop_back();  // the part, of which none has run
  StepLoad load = LoadOf(step_);
  load.held_up = held_up;
  // Nothing comes of a chunk before its last layer.
  if (!step_.rows.back().done) step_.rows.pop_back();
  const TraceScope scope(trace_.get(), TraceKind::kAnswer, step_.rows.size());
  CountDecode(load);
  for (const ScheduledRow& row : step_.rows) {
    const Job& job = *jobs_.at(row.id);
    executor_->cache()->Commit(job.slot, HeldOf(job, row.first_position + row.length));
  }
  ShowPages();
  DrawTokens();
  for (size_t i = 0; i < step_.rows.size(); ++i) FinishRow(step_.rows[i], i);
  const double now = NowSeconds();
  ObserveTime(load, now - std::exchange(step_begin_, now));
}

// Whatever they have committed is still there for those that come.
void EngineImpl::FailStep(const Status& status) {
  {
    std::lock_guard lock(mutex_);
    stats_.device_error = status.message();
  }
  for (const ScheduledRow& row : step_.rows) {
    Job* job = jobs_.at(row.id).get();
    Finish(job, FinishReason::kError, job->answer->Finish(), status);
  }
}

EngineImpl::StepLoad EngineImpl::LoadOf(const ScheduledStep& step) const {
  StepLoad load;
  for (const ScheduledRow& row : step.rows) {
    if (row.prompt) {
      if (load.prompts == 0) load.depth = row.first_position;
      const PromptCost& cost = chunks_->cost();
      if (row.part.empty()) {
        load.prompts += cost.Of(row.length, row.first_position);
      } else {
        load.part_alone = load.prompts == 0;
        load.prompts += cost.OfPart(row.length, row.first_position, row.part, info_.layers);
      }
    } else {
      load.generated += row.length;
      load.replays = load.replays || row.length > 1;
    }
  }
  return load;
}

void EngineImpl::ObserveTime(const StepLoad& load, double seconds) {
  // Who only looked at those that were held up would think that all are so long.
  if (!load.replays && !load.held_up) {
    chunks_->Observe({.generated = load.generated,
                      .units = load.prompts,
                      .depth = load.depth,
                      .seconds = seconds,
                      .part_seconds = load.part_alone ? executor_->part_seconds() : 0});
  }
  if (tuner_ != nullptr && load.generated > 0 && tuner_->Observe(seconds)) Retune();
}

void EngineImpl::Retune() {
  scheduler_->SetRunningMax(tuner_->setting().sequences);
  const TuningStats tuning = StatsOf(*tuner_);
  {
    std::lock_guard lock(mutex_);
    stats_.tuning = tuning;
  }
  if (options_.on_tuning) options_.on_tuning(tuning);
}

void EngineImpl::CountDecode(const StepLoad& load) {
  const SelectionCounts counts = executor_->selection_counts();
  const uint64_t checks = executor_->shadow_checks();
  std::vector<ShadowStats> shadow;
  if (checks != shadow_checks_) shadow = executor_->shadow_stats();
  std::vector<StepPluginStats> steps = executor_->step_stats();
  std::lock_guard lock(mutex_);
  stats_.device_error.clear();
  stats_.selection = StatsOf(counts);
  stats_.step_plugins = std::move(steps);
  if (checks != shadow_checks_) stats_.shadow = std::move(shadow);
  shadow_checks_ = checks;
  if (load.prompts > 0 || load.replays) return;
  stats_.decode_kv_bytes += executor_->cost().kv_bytes;
  stats_.decode_tokens += step_.rows.size();
}

bool EngineImpl::Answers(const ScheduledRow& row) const {
  return row.sampled && jobs_.at(row.id)->request.max_tokens > 0;
}

void EngineImpl::DrawTokens() {
  if (draws_.size() < step_.rows.size()) draws_.resize(step_.rows.size());
  threads_->For(static_cast<uint32_t>(step_.rows.size()), [this](uint32_t index, uint32_t) {
    DrawRow(step_.rows[index], index, &draws_[index]);
  });
}

// Of one request alone: what others see, and what is told, is left to FinishRow.
void EngineImpl::DrawRow(const ScheduledRow& row, size_t index, Draw* draw) {
  // Not left to the logits: int8 activations may give finite ones for states that are no numbers.
  draw->finite = executor_->finite(index);
  draw->ends = false;
  draw->status = Status();
  if (!draw->finite || !Answers(row)) return;
  Job* job = jobs_.at(row.id).get();
  const Request& r = job->request;
  if (std::optional<DrawnToken> drawn = executor_->drawn(index)) {
    draw->token = drawn->token;
    draw->logprob = drawn->logprob;
    draw->top = std::move(drawn->top);
    if (drawn->token < 0) draw->status = NotFinite("logits", row);
    return;
  }
  const std::span<float> logits = executor_->logits(index);
  draw->ends = EndsByPlugin(job, logits);
  if (draw->ends) return;
  const bool scored = r.top_logprobs >= 0;
  // Sampling changes the logits; log-probabilities are the model's own.
  if (scored) draw->raw.assign(logits.begin(), logits.end());
  if (r.constraint) {
    draw->status = Constrain(r.constraint.get(), &draw->allowed, logits);
    if (!draw->status.ok()) return;
  }
  draw->token = job->sampler->Sample(logits, row.first_position + row.length,
                                     BannedAfter(*job, job->generated()));
  const auto token = static_cast<size_t>(draw->token);
  draw->logprob = 0;
  draw->top.clear();
  if (scored) {
    const float log_sum = LogSumExp(draw->raw);
    draw->logprob = draw->raw[token] - log_sum;
    draw->top = TopLogprobs(draw->raw, log_sum, TopWanted(r));
  }
  // The sampler prefers every finite logit to one that is none.
  if (!std::isfinite(logits[token]) || !std::isfinite(draw->logprob))
    draw->status = NotFinite("logits", row);
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
  if (!draws_[index].finite) {
    return Finish(job, FinishReason::kError, job->answer->Finish(),
                  NotFinite("hidden states", row));
  }
  if (!row.prompt) job->reads.Add(executor_->ReadsOf(index));
  job->done = row.first_position + row.length;
  Share(*job);
  Prune(*job, row);
  if (row.prompt && job->generated() == 0) {
    if (job->request.prompt_logprobs) {
      Status taken = TakePromptLogprobs(job, row, index);
      if (!taken.ok()) return Finish(job, FinishReason::kError, "", std::move(taken));
    }
    if (job->request.pooling != Pooling::kNone) PoolStates(job, row, index);
    TokenEvent event;
    event.kind = TokenEvent::Kind::kPrefill;
    event.request = job->id;
    event.done = job->done;
    event.total = job->prompt_tokens;
    job->sink(event);
  }
  if (!row.sampled) return;
  if (job->request.max_tokens == 0) return Finish(job, FinishReason::kLength, "");
  Status emitted = EmitToken(job, index);
  if (!emitted.ok()) Finish(job, FinishReason::kError, job->answer->Finish(), std::move(emitted));
}

void EngineImpl::Prune(const Job& job, const ScheduledRow& row) {
  const StepPlugins* steps = executor_->steps_of(job.steps);
  if (steps == nullptr || !steps->prunes()) return;
  const bool here = row.prompt ? job.done == job.prompt_tokens
                               : job.done % executor_->cache()->share_tokens() == 0;
  const uint32_t dropped = here ? executor_->Prune(job.slot, job.steps) : 0;
  if (dropped == 0) return;
  scheduler_->Drop(job.id, dropped);
  std::lock_guard lock(mutex_);
  stats_.dropped_tokens += dropped;
}

void EngineImpl::PoolStates(Job* job, const ScheduledRow& row, size_t index) {
  state_.resize(info_.dim);
  const bool all = job->request.pooling == Pooling::kMean;
  const bool last = job->done == job->prompt_tokens;
  for (uint32_t i = 0; i < row.length; ++i) {
    if (!all && !(last && i + 1 == row.length)) continue;
    executor_->FinalState(index, i, state_);
    job->pooled.Add(state_);
  }
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

Status EngineImpl::EmitToken(Job* job, size_t index) {
  Draw* draw = &draws_[index];
  if (draw->ends) {
    Finish(job, FinishReason::kStop, job->answer->Finish());
    return Status();
  }
  TS_RETURN_IF_ERROR(std::move(draw->status));
  const int32_t token = draw->token;
  job->sampler->Observe(token);
  executor_->SetSampled(index, token);
  job->tokens.push_back(token);
  job->last_token = NowSeconds();
  if (job->first_token == 0) job->first_token = job->last_token;
  TokenEvent event;
  event.kind = TokenEvent::Kind::kToken;
  event.request = job->id;
  event.token = token;
  event.logprob = draw->logprob;
  event.top = std::move(draw->top);
  const FinishReason reason = AfterToken(job, token);
  const bool end_token = reason == FinishReason::kStop && !job->answer->stopped();
  if (!end_token) {
    if (job->request.constraint) TS_RETURN_IF_ERROR(job->request.constraint->Accept(token));
    const Result<std::string> bytes = tokenizer_->TokenBytes(token, job->request.spell_control);
    if (bytes.ok()) event.text = job->answer->Push(*bytes);
  }
  job->sink(event);
  if (reason != FinishReason::kNone || job->answer->stopped()) {
    Finish(job, job->answer->stopped() ? FinishReason::kStop : reason, job->answer->Finish());
  }
  return Status();
}

bool EngineImpl::EndsByPlugin(Job* job, std::span<const float> logits) const {
  const StepPlugins* steps = executor_->steps_of(job->steps);
  const Request& r = job->request;
  if (steps == nullptr || r.ignore_eos || r.constraint != nullptr) return false;
  if (job->generated() == 0 || job->generated() < r.min_tokens) return false;
  return steps->Ends({.struct_size = 0,
                      .generated = job->generated(),
                      .vocab = static_cast<uint32_t>(logits.size()),
                      .logits = logits.data(),
                      .state = nullptr},
                     reinterpret_cast<uint8_t*>(job->step_state.data()));
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
  TokenEvent event;
  event.kind = TokenEvent::Kind::kFinished;
  event.request = id;
  event.text = std::move(text);
  event.finish = reason;
  event.status = std::move(status);
  event.prompt_logprobs = std::move(job->prompt_logprobs);
  event.prompt_top = std::move(job->prompt_top);
  if (reason == FinishReason::kLength) event.embedding = job->pooled.Unit();
  Usage& usage = event.usage;
  usage.prompt_tokens = job->prompt_tokens;
  usage.cached_tokens = job->cached_tokens;
  usage.completion_tokens = job->generated();
  usage.reads = StatsOf(job->reads);
  const double now = NowSeconds();
  usage.queue_seconds = (job->started != 0 ? job->started : now) - job->submitted;
  if (job->started != 0)
    usage.prefill_seconds = (job->first_token != 0 ? job->first_token : now) - job->started;
  if (job->first_token != 0) {
    usage.decode_seconds = job->last_token - job->first_token;
    usage.first_token_seconds = job->first_token - job->submitted;
  }
  if (!job->request.session.empty()) {
    std::lock_guard lock(mutex_);
    KeepForSession(*job, usage);
  }
  if (job->running) {
    if (event.status.ok()) ShareTail(*job);
    executor_->cache()->RemoveSequence(job->slot);
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

}  // namespace tinyserve
