// What Engine::Open gives: opening is in engine.cc, the engine thread's loop and who starts in
// engine_loop.cc, a step and its answers in engine_step.cc.
#ifndef TINYSERVE_ENGINE_ENGINE_IMPL_H_
#define TINYSERVE_ENGINE_ENGINE_IMPL_H_

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "base/trace.h"
#include "engine/backend.h"
#include "engine/chunk_sizer.h"
#include "engine/executor.h"
#include "engine/grammar_constraint.h"
#include "engine/job.h"
#include "engine/latency_tuner.h"
#include "engine/page_watch.h"
#include "engine/scheduler.h"
#include "engine/session_table.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "tinyserve/engine.h"

namespace tinyserve {

// A step's row and the token that follows it.
struct Draw {
  bool finite = true;  // the row's hidden states; else nothing is drawn
  bool ends = false;   // by a step plugin: nothing is drawn
  Status status;       // of the constraint, or of logits that are no numbers
  int32_t token = -1;
  float logprob = 0;
  std::vector<TokenLogprob> top;
  // Scratch.
  std::vector<uint32_t> allowed;  // bits of tokens that a constraint allows
  std::vector<float> raw;         // [vocab]
};

inline double NowSeconds() { return static_cast<double>(NowNs()) / 1e9; }

// One thread owns the scheduler and the cache, is fed by a bounded inbox, and answers by events.
class EngineImpl : public Engine {
 public:
  // overlaps: where the executor can, a step is begun before the one before it has ended; else none
  // is, which gives the same texts. device_draws: where the executor can, it draws; else the host
  // does, which gives the same texts but for draws within the rounding of a sum.
  static Result<std::unique_ptr<Engine>> Open(const EngineOptions& options, bool overlaps = true,
                                              bool device_draws = true);
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
  Result<std::string> RenderConversation(std::string_view messages_json, bool add_generation_prompt,
                                         std::string_view variables_json) const override {
    return template_->RenderJson(std::string(messages_json), add_generation_prompt,
                                 std::string(variables_json));
  }
  Result<std::shared_ptr<const Grammar>> CompileGrammar(GrammarKind kind,
                                                        std::string_view text) const override {
    return grammars_->Compile(kind, text);
  }
  const ModelInfo& info() const override { return info_; }
  const TokenizerInfo& tokenizer_info() const override { return tokenizer_info_; }
  EngineStats stats() const override;
  std::vector<LayerSelection> layer_selection() const override;
  std::vector<SessionInfo> sessions(std::string_view client) const override;
  bool EndSession(std::string_view client, std::string_view session) override;
  PageReads WatchPages(std::string_view client, RequestId request) override;
  Result<TraceCounts> EndTrace() override;

 private:
  Status OpenText(const GgufFile& file);
  Status OpenExecutor();
  // Where a target is set.
  Status OpenTuner(const SelectorSpec& selector);
  void DescribeModel(const GgufFile& file);
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
  void FillBatch(const ScheduledStep& step, StepBatch* batch);
  void AddRow(const ScheduledRow& row, StepBatch* batch);
  void TracePlan(uint64_t begin_ns, size_t rows);
  void MaskRows(const ScheduledStep& step, StepBatch* batch);
  // How the token after a row is drawn, where an executor may draw it; `generated`: tokens before
  // that one.
  DrawRule RuleFor(const Job& job, uint32_t generated, std::vector<LogitEdit>* edits) const;
  // End tokens that must not come yet after so many.
  std::span<const int32_t> BannedAfter(const Job& job, uint32_t generated) const;
  // What a step's time is to be told by.
  struct StepLoad {
    uint32_t generated = 0;   // tokens
    double prompts = 0;       // in units of PromptCost
    uint32_t depth = 0;       // of the first of them
    bool part_alone = false;  // prompts: layers of one chunk alone
    bool replays = false;     // what was generated before
    bool held_up = false;     // so long that a prompt's layers were left out
  };
  StepLoad LoadOf(const ScheduledStep& step) const;
  void ObserveTime(const StepLoad& load, double seconds);
  void Retune();
  void Share(const Job& job);
  void ShareTail(const Job& job);  // its last tokens, when it has ended
  void KeepForSession(const Job& job, const Usage& usage);
  void UnpinEnded();
  void ShowPages();
  void ShowPagesOf(const Job& job, uint32_t position, PageReads* seen) const;
  // How many of a job's first tokens the cache holds.
  uint32_t HeldOf(const Job& job, uint32_t tokens) const {
    return tokens - executor_->cache()->dropped_tokens(job.slot);
  }
  // Lets step plugins drop some of them, where a row ends that may be followed by that.
  void Prune(const Job& job, const ScheduledRow& row);
  void RunStep();
  Status ComputeStep();  // step_
  bool BeginNext();      // next_step_, while step_ runs; false: it cannot be known yet
  void DropEnded();      // rows of step_, which was begun before their requests ended
  void AnswerStep();     // what came of step_
  // Ends the requests of a step that its device could not run.
  void FailStep(const Status& status);
  void CountDecode(const StepLoad& load);
  bool Answers(const ScheduledRow& row) const;  // whether a token of its answer follows
  void DrawTokens();                            // draws_, on all compute threads
  void DrawRow(const ScheduledRow& row, size_t index, Draw* draw);
  void FinishRow(const ScheduledRow& row, size_t index);
  void PoolStates(Job* job, const ScheduledRow& row, size_t index);
  Status TakePromptLogprobs(Job* job, const ScheduledRow& row, size_t index);
  Status EmitToken(Job* job, size_t index);  // what was drawn
  Status NotFinite(const char* what, const ScheduledRow& row) const;
  // Whether a step plugin ends the answer before its next token, which has these logits.
  bool EndsByPlugin(Job* job, std::span<const float> logits) const;
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
  std::unique_ptr<Backend> backend_;
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
  std::unique_ptr<SessionTable> sessions_;
  PageWatch watch_;
  std::vector<SelectionCounts> strip_counts_;  // as Executor's

  // The engine thread's own.
  std::unordered_map<RequestId, std::unique_ptr<Job>> jobs_;
  std::vector<RequestId> admitted_;  // and not started, in order
  ScheduledStep step_, next_step_;
  StepBatch batch_, next_batch_;  // of them
  bool overlaps_ = false, device_draws_ = false;
  bool begun_ = false;     // step_ has been begun, between two rounds of the loop
  double step_begin_ = 0;  // of step_, or when the step before it ended
  std::unique_ptr<ChunkSizer> chunks_;
  std::unique_ptr<LatencyTuner> tuner_;    // or null
  std::vector<uint32_t> tuned_selectors_;  // by its rungs: the executor's
  double touch_seconds_ = 0;               // that the cache took between the last step and the next
  uint64_t shadow_checks_ = 0;             // that stats_ tells of
  std::vector<Draw> draws_;                // of the step's rows
  std::vector<float> state_;               // scratch of PoolStates, [dim]
  std::thread thread_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_ENGINE_IMPL_H_
