#include "tools/attention_record.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "engine/executor.h"
#include "engine/selection_stats.h"
#include "tools/format.h"

namespace tinyserve {
namespace {

constexpr uint32_t kChunkTokens = 512;  // prompt tokens of one step

// The generation that is recorded: one sequence in an executor of its own.
class Recorder {
 public:
  Recorder(const LoadedModel& model, const AttentionRecordOptions& options, uint32_t prompt_tokens)
      : model_(model), options_(options), prompt_tokens_(prompt_tokens) {}

  Status Open();
  void Prefill(std::span<const int32_t> prompt, const std::function<void(double)>& progress);
  // Runs a generated token; logits() then has what follows.
  void Step(int32_t token, uint32_t position);
  int32_t Likeliest() const;
  // Adds what the last step read to the record.
  void Read(uint32_t position, AttentionRecord* record) const;
  Executor* executor() { return executor_.get(); }

 private:
  uint32_t held_tokens() const {
    const uint32_t block = BlockTokensFor(options_.page_tokens);
    return (prompt_tokens_ + options_.steps + block - 1) / block * block;
  }
  void Run(std::span<const int32_t> tokens, uint32_t position, TokenClass token_class, Want want);

  const LoadedModel& model_;
  const AttentionRecordOptions& options_;
  uint32_t prompt_tokens_;
  std::unique_ptr<Executor> executor_;
  SequenceSlot slot_ = 0;
  uint32_t selector_ = 0;
  StepBatch batch_;
};

Status Recorder::Open() {
  const Method& method = options_.method;
  const uint32_t page_tokens = options_.page_tokens;
  TS_ASSIGN_OR_RETURN(const SelectorNeeds kept,
                      model_.NeedsOf(method.kv, {&method.spec, 1}, page_tokens));
  TS_ASSIGN_OR_RETURN(const uint64_t token_bytes,
                      model_.KvBytesPerToken(method.kv, page_tokens, kept));
  TS_ASSIGN_OR_RETURN(const uint64_t fixed_bytes,
                      model_.KvFixedBytes(method.kv, page_tokens, kept, 1, kChunkTokens));
  const uint64_t bytes = held_tokens() * token_bytes + fixed_bytes;
  if (bytes > options_.kv_bytes_max) {
    return Status(
        Code::kOutOfMemory,
        fmt::format("{} tokens need {} of KV cache, of {} that this process may use", held_tokens(),
                    FormatBytes(bytes), FormatBytes(options_.kv_bytes_max)));
  }
  TS_ASSIGN_OR_RETURN(executor_,
                      model_.backend->CreateExecutor({.kv = method.kv,
                                                      .kv_memory_bytes = bytes,
                                                      .page_tokens = page_tokens,
                                                      .block_tokens = BlockTokensFor(page_tokens),
                                                      .sequences_max = 1,
                                                      .sequence_tokens_max = held_tokens(),
                                                      .step_tokens_max = kChunkTokens,
                                                      .selectors = {method.spec.typed}}));
  TS_ASSIGN_OR_RETURN(slot_, executor_->cache()->AddSequence());
  TS_ASSIGN_OR_RETURN(selector_, executor_->FindSelector(method.spec.typed));
  return executor_->cache()->Reserve(slot_, std::min(held_tokens(), kChunkTokens));
}

void Recorder::Run(std::span<const int32_t> tokens, uint32_t position, TokenClass token_class,
                   Want want) {
  const auto length = static_cast<uint32_t>(tokens.size());
  batch_.Clear();
  batch_.rows.push_back({.slot = slot_,
                         .first_position = position,
                         .length = length,
                         .first_input = 0,
                         .token_class = token_class,
                         .want = want,
                         .selector = selector_});
  batch_.inputs.assign(tokens.begin(), tokens.end());
  TS_CHECK(executor_->cache()->Reserve(slot_, position + length).ok());  // sized for all tokens
  TS_CHECK(executor_->RunStep(batch_).ok());                             // the CPU's do not fail
  executor_->cache()->Commit(slot_, position + length);
}

void Recorder::Prefill(std::span<const int32_t> prompt,
                       const std::function<void(double)>& progress) {
  for (uint32_t at = 0; at < prompt_tokens_;) {
    const uint32_t length = std::min(kChunkTokens, prompt_tokens_ - at);
    const bool last = at + length == prompt_tokens_;
    Run(prompt.subspan(at, length), at, TokenClass::kPrompt, last ? Want::kLogits : Want::kNothing);
    at += length;
    progress(at);
  }
}

void Recorder::Step(int32_t token, uint32_t position) {
  Run({&token, 1}, position, TokenClass::kGenerated, Want::kLogits);
}

int32_t Recorder::Likeliest() const {
  const std::span<const float> logits = executor_->logits(0);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void Recorder::Read(uint32_t position, AttentionRecord* record) const {
  const uint32_t pages = position / record->page_tokens + 1;
  // The raw pages beside coded ones are always read.
  const bool coded = executor_->cache()->coded(0);
  const uint32_t raw = coded ? executor_->cache()->RawBegin(position) / record->page_tokens : pages;
  for (uint32_t layer = 0; layer < record->layers; ++layer) {
    for (uint32_t head = 0; head < record->kv_heads; ++head) {
      const size_t row = record->reads.size();
      record->reads.resize(row + record->row_bytes());
      const std::span<const uint64_t> bits = executor_->PagesRead(slot_, layer, head, position);
      for (uint32_t p = 0; p < pages; ++p) {
        // No bits: everything was read.
        const bool read = bits.empty() || p >= raw || (bits[p / 64] >> p % 64 & 1) != 0;
        if (read) record->reads[row + p / 8] |= static_cast<uint8_t>(1u << p % 8);
      }
    }
  }
}

}  // namespace

bool AttentionRecord::Reads(uint32_t step, uint32_t layer, uint32_t kv_head, uint32_t page) const {
  const uint64_t row = (uint64_t{step} * layers + layer) * kv_heads + kv_head;
  return (reads[row * row_bytes() + page / 8] >> page % 8 & 1) != 0;
}

double AttentionRecord::ShareRead(uint32_t layer) const {
  uint64_t held = 0, read = 0;
  for (uint32_t step = 0; step < tokens.size(); ++step) {
    for (uint32_t head = 0; head < kv_heads; ++head) {
      held += pages_at(step);
      for (uint32_t page = 0; page < pages_at(step); ++page)
        read += Reads(step, layer, head, page) ? 1 : 0;
    }
  }
  return held == 0 ? 0 : static_cast<double>(read) / static_cast<double>(held);
}

Result<AttentionRecord> RecordAttention(const LoadedModel& model, const Tokenizer& tokenizer,
                                        std::span<const int32_t> prompt,
                                        const AttentionRecordOptions& options,
                                        const std::function<void(double)>& progress) {
  const ModelConfig& config = model.config();
  if (model.on_device()) {
    return Status(Code::kUnsupported,
                  "which pages are read stays on a device: record with --device cpu");
  }
  const uint64_t tokens = prompt.size() + uint64_t{options.steps};
  if (prompt.empty() || tokens > config.context) {
    return Status(Code::kInvalidArgument,
                  fmt::format("a prompt of {} tokens and {} generated ones: the prompt needs at "
                              "least one, and the model was trained for {} in all",
                              prompt.size(), options.steps, config.context));
  }
  AttentionRecord record{.model = config.name,
                         .selector = options.method.spec.resolved,
                         .kv = options.method.kv,
                         .layers = config.layers,
                         .kv_heads = config.kv_heads,
                         .page_tokens = options.page_tokens,
                         .prompt_tokens = static_cast<uint32_t>(prompt.size())};
  record.pages = record.pages_at(options.steps - 1);
  const uint64_t bytes =
      uint64_t{record.row_bytes()} * options.steps * record.layers * record.kv_heads;
  if (bytes > kRecordBytesMax) {
    return Status(
        Code::kInvalidArgument,
        fmt::format("a picture of {} steps over {} pages would hold {}: {} are allowed, "
                    "so give fewer --tokens",
                    options.steps, record.pages, FormatBytes(bytes), FormatBytes(kRecordBytesMax)));
  }
  Recorder recorder(model, options, record.prompt_tokens);
  TS_RETURN_IF_ERROR(recorder.Open());
  // A generated token takes about six times as long as one of a prompt.
  const double work = record.prompt_tokens + 6.0 * options.steps;
  recorder.Prefill(prompt, [&](double done) { progress(done / work); });
  const std::vector<int32_t>& ends = tokenizer.end_tokens();
  for (uint32_t step = 0; step < options.steps; ++step) {
    const int32_t token = recorder.Likeliest();
    if (step > 0 && std::find(ends.begin(), ends.end(), token) != ends.end()) break;
    const uint32_t position = record.prompt_tokens + step;
    recorder.Step(token, position);
    recorder.Read(position, &record);
    TS_ASSIGN_OR_RETURN(std::string text, tokenizer.Decode({&token, 1}, true));
    record.tokens.push_back(std::move(text));
    progress((record.prompt_tokens + 6.0 * (step + 1)) / work);
  }
  record.strips = LayersOf(recorder.executor()->strip_counts(), record.kv_heads);
  return Result<AttentionRecord>(std::move(record));
}

}  // namespace tinyserve
