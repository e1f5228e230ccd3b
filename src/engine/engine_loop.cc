// The engine thread: what arrives, who starts, and what prompts that begin alike share.
#include <algorithm>

#include "base/check.h"
#include "base/pin_thread.h"
#include "engine/engine_impl.h"

namespace tinyserve {

// ---- the engine thread --------------------------------------------------------------------------

void EngineImpl::Loop() {
  PinThread(0, threads_->threads());  // beside the pool's workers
  while (TakeInbox()) {
    EndCancelledAndLate();
    StartAdmitted();
    RunStep();
    const double begin = NowSeconds();
    executor_->cache()->TouchAhead(threads_.get());
    touch_seconds_ = NowSeconds() - begin;
  }
  while (!jobs_.empty()) Finish(jobs_.begin()->second.get(), FinishReason::kCancelled, "");
}

bool EngineImpl::TakeInbox() {
  std::vector<std::unique_ptr<Job>> taken;
  {
    std::unique_lock lock(mutex_);
    // A step that was begun for those that have ended is still to be finished.
    if (jobs_.empty() && !begun_) wake_.wait(lock, [&] { return stopping_ || !inbox_.empty(); });
    taken.swap(inbox_);
    for (const std::unique_ptr<Job>& job : taken) {
      const Request& r = job->request;
      if (!r.session.empty()) sessions_->Begin(r.client, r.session, NowSeconds());
    }
    UnpinEnded();
    PublishStats(taken.size());
    if (stopping_) {
      for (std::unique_ptr<Job>& job : taken) jobs_.emplace(job->id, std::move(job));
      return false;
    }
  }
  for (std::unique_ptr<Job>& job : taken) {
    const RequestId id = job->id;
    const Request& r = job->request;
    scheduler_->Submit({.id = id,
                        .prompt_tokens = job->prompt_tokens,
                        .max_tokens = r.max_tokens,
                        .priority = r.priority,
                        .client = std::hash<std::string>()(r.client.empty() ? r.peer : r.client)});
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
  stats_.blocks_pinned = executor_->cache()->pinned_blocks();
  stats_.sessions = static_cast<uint32_t>(sessions_->size());
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
    const StepPlugins* steps = executor_->steps_of(job->steps);
    const bool prunes = steps != nullptr && steps->prunes();
    // What plugins measure of prompts they learn of whole chunks alone.
    scheduler_->Start(id, job->done, prunes ? executor_->cache()->share_tokens() : 0,
                      /*by_layers=*/steps == nullptr);
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
  if (selector.empty() && tuner_ != nullptr) {
    job->selector = tuned_selectors_[tuner_->rung()];
  } else {
    TS_ASSIGN_OR_RETURN(job->selector,
                        executor_->FindSelector(selector.empty() ? options_.selector : selector));
  }
  TS_ASSIGN_OR_RETURN(
      job->steps, executor_->FindSteps(job->request.step_plugins.value_or(options_.step_plugins)));
  if (const StepPlugins* steps = executor_->steps_of(job->steps))
    job->step_state.assign((steps->answer_bytes() + 7) / 8, 0);
  job->sampler = std::make_unique<Sampler>(job->request.sampling, info_.vocab, job->prompt());
  job->answer = std::make_unique<AnswerText>(job->request.stop);
  return Status();
}

// ---- prompts that begin like others -------------------------------------------------------------

PrefixMaker EngineImpl::MakerOf(const Job& job) const {
  // An embedding is that of its prompt alone, whatever was generated before.
  if (options_.exact_reuse || job.request.pooling != Pooling::kNone) return kMadeByPrefill;
  return kMadeByPrefill + 1 + executor_->MakerOf(job.selector, job.steps);
}

// Whether a job waits for one that has started and computes a prompt which begins like its own:
// those of n > 1, or a batch that shares its instructions. What has started waits for nobody.
bool EngineImpl::Follows(Job* job) {
  if (!options_.prefix_cache || job->computes_whole_prompt()) return false;
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
  // At least one token is computed: the first of the answer comes from its logits.
  const bool resumed = job->started != 0;
  const std::span<const int32_t> wanted = job->computes_whole_prompt() && job->generated() == 0
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
    job->pooled.Clear();
  }
  std::lock_guard lock(mutex_);
  ++stats_.preemptions;
}

void EngineImpl::Share(const Job& job) {
  if (!options_.prefix_cache) return;
  executor_->cache()->Share(job.slot, job.tokens, job.prompt_tokens, MakerOf(job));
}

void EngineImpl::ShareTail(const Job& job) {
  if (!options_.prefix_cache) return;
  executor_->cache()->ShareTail(job.slot, job.tokens, job.prompt_tokens, MakerOf(job));
}

// ---- conversations ------------------------------------------------------------------------------

// REQUIRES: mutex_ is held.
void EngineImpl::UnpinEnded() {
  sessions_->Expire(NowSeconds());
  for (const uint64_t number : sessions_->TakeEnded()) executor_->cache()->Unpin(number);
}

// What a request leaves in the cache is kept for the next one of its conversation. REQUIRES: mutex_
// is held, and the job still has its slot if it runs.
void EngineImpl::KeepForSession(const Job& job, const Usage& usage) {
  const Request& r = job.request;
  if (r.session.empty()) return;
  const std::optional<uint64_t> number = sessions_->End(r.client, r.session, usage, NowSeconds());
  if (!number || !job.running) return;
  KvCache* cache = executor_->cache();
  const auto blocks_max =
      static_cast<uint32_t>(options_.session_share * static_cast<double>(cache->pool(0).total()));
  cache->Pin(job.slot, *number, blocks_max);
  while (cache->pinned_blocks() > blocks_max) {
    const std::optional<uint64_t> idle =
        sessions_->LongestIdle(*number, [cache](uint64_t other) { return cache->has_pin(other); });
    cache->Unpin(idle.value_or(*number));
  }
}

}  // namespace tinyserve
