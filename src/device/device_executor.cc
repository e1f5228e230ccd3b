#include "device/device_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "engine/logprobs.h"
#include "engine/selector_storage.h"
#include "kernels/cuda/products.h"
#include "select/device_entry.h"

namespace tinyserve::cuda {
namespace {

constexpr size_t kGraphsMax = 64;

void AddProducts(const DeviceLinear& linear, TokenProducts* products) {
  for (const DeviceLinear::Part& part : linear.parts) {
    uint64_t& kind = TakesCodedActs(part.weights.form) ? products->coded : products->floats;
    kind += uint64_t{part.weights.rows} * linear.cols;
  }
}

// Without logits.
TokenProducts ProductsOf(const DeviceModel& model) {
  TokenProducts products;
  for (const DeviceLayer& layer : model.layers()) {
    for (const DeviceLinear* w : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down})
      AddProducts(*w, &products);
  }
  return products;
}

}  // namespace

Result<std::unique_ptr<DeviceExecutor>> DeviceExecutor::Create(const DeviceSetup& setup,
                                                               const ExecutorOptions& options) {
  TS_RETURN_IF_ERROR(CheckSizes(options));
  std::unique_ptr<DeviceExecutor> e(new DeviceExecutor);
  e->setup_ = setup;
  e->options_ = options;
  if (options.logits_max == 0) e->options_.logits_max = options.sequences_max;
  TS_RETURN_IF_ERROR(e->OpenCache(options));
  const DeviceModel& model = *setup.model;
  const ModelConfig& config = model.config();
  TS_ASSIGN_OR_RETURN(e->step_,
                      DeviceStep::Create(setup.model, e->cache_.get(), &setup.pages->stream(),
                                         {.rows_max = options.step_tokens_max,
                                          .sequences_max = options.sequences_max,
                                          .sequence_tokens_max = options.sequence_tokens_max,
                                          .logits_max = e->options_.logits_max,
                                          .uncommitted_max = options.uncommitted_max(),
                                          .processors = setup.device.processors,
                                          .sub_pages = e->sub_pages_,
                                          .keeps_choices = e->needs_.state_bytes > 0}));
  const uint32_t bucket_max = std::min(options.step_tokens_max, e->step_->draws_max());
  e->plan_ =
      std::make_unique<DevicePlan>(e->cache_.get(), e->step_.get(), model.frequencies(),
                                   model.rope_magnitude(), options.sequence_tokens_max, bucket_max);
  e->counts_ = std::make_unique<DeviceCounts>(e->cache_.get(), config.layers,
                                              config.heads / config.kv_heads);
  const Checked logits = e->options_.logits_max, vocab = config.vocab;
  for (Flight& flight : e->flights_) {
    e->pinned_.Add(&flight.finite, options.step_tokens_max);
    e->pinned_.Add(&flight.failed, e->step_->failed().count);
    e->pinned_.Add(&flight.drawn, e->step_->draws_max());
    e->pinned_.Add(&flight.tops, e->step_->draws_max());
    e->pinned_.Add(&flight.scores, e->step_->draws_max());
  }
  for (auto& events : e->events_) {
    TS_ASSIGN_OR_RETURN(events.begun, Event::Create());
    TS_ASSIGN_OR_RETURN(events.ended, Event::Create());
  }
  e->pinned_.Add(&e->logits_, logits * vocab);
  e->pinned_.Add(&e->scoring_, Checked(DeviceStep::logit_rows()) * vocab);
  TS_RETURN_IF_ERROR(e->pinned_.Allocate());
  e->scorers_.LoadAll();
  for (const std::string& text : options.selectors)
    TS_RETURN_IF_ERROR(e->FindSelector(text).status());
  return Result<std::unique_ptr<DeviceExecutor>>(std::move(e));
}

Status DeviceExecutor::OpenCache(const ExecutorOptions& options) {
  const ModelConfig& config = setup_.model->config();
  TS_ASSIGN_OR_RETURN(const Codec* codec, FindCodec(options.kv));
  TS_ASSIGN_OR_RETURN(const std::vector<SelectorSpec> specs, ParseSelectors(options.selectors));
  TS_RETURN_IF_ERROR(CheckDeviceSelectors(specs, *codec));
  const uint32_t kinds = RecordKindsOf(specs, *codec);
  shape_ = SelectorShapeOf(config, options.page_tokens, options.sequence_tokens_max, kinds);
  layer_products_ = ProductsOf(*setup_.model);
  AddProducts(setup_.model->head(), &head_products_);
  KvCacheOptions cache =
      CacheOptionsOf(options, codec, config, layer_products_.coded + layer_products_.floats);
  TS_ASSIGN_OR_RETURN(needs_, NeedsOf(specs, shape_, &places_));
  TS_RETURN_IF_ERROR(ListSubPages(specs, codec->sealed_type));
  needs_.metadata = kinds;
  // States of sequences are kept by the step.
  cache.kept = {.metadata = kinds, .summary_bytes = needs_.summary_bytes, .state_bytes = 0};
  TS_ASSIGN_OR_RETURN(
      cache_,
      KvCache::Create(
          {{.layers = config.layers, .kv_heads = config.kv_heads, .head_dim = config.head_dim}},
          cache, setup_.pages));
  return Status();
}

Status DeviceExecutor::ListSubPages(std::span<const SelectorSpec> specs, KvType stored) {
  for (const SelectorSpec& spec : specs) {
    if (spec.table == nullptr) continue;
    TS_ASSIGN_OR_RETURN(const DeviceSelector selector, DeviceSelectorOf(spec, stored));
    if (selector.sub_tokens == 0) continue;
    TS_ASSIGN_OR_RETURN(const SummaryOffsets at, PlaceOf(spec, shape_, needs_, places_));
    const SubPageBoxes boxes{.tokens = selector.sub_tokens, .at = at.own};
    const auto same = [&](const SubPageBoxes& other) { return other.at == boxes.at; };
    if (std::none_of(sub_pages_.begin(), sub_pages_.end(), same)) sub_pages_.push_back(boxes);
  }
  return Status();
}

// What is on its way to or from this memory arrives first; a device that is lost copies no more.
DeviceExecutor::~DeviceExecutor() {
  if (running() > 0) (void)setup_.pages->stream().Synchronize();
}

// ---- a step -------------------------------------------------------------------------------------

void DeviceExecutor::BeginStep(const StepBatch& batch) {
  TS_CHECK(running() <= 1);
  if (running() == 1) {
    for (const PlannedRow& row : flights_[finished_ % 2].planned.rows) TS_CHECK(row.draws);
  }
  Flight* flight = &flights_[begun_ % 2];
  flight->begin_ns = NowNs();
  flight->batch = batch;
  flight->begun = Enqueue(flight);
  ++begun_;
}

// Uploads, launches, downloads: all in the stream's order, so that what a step reads is what those
// before it have written, whoever a page has belonged to meanwhile.
Status DeviceExecutor::Enqueue(Flight* flight) {
  const DeviceStream& stream = setup_.pages->stream();
  flight->planned = plan_->Plan(flight->batch, ResolveInputs(flight->batch), selectors_);
  TS_RETURN_IF_ERROR(runtime::UseDevice(setup_.device.index));
  TS_RETURN_IF_ERROR(setup_.pages->TakeFailure());
  TS_RETURN_IF_ERROR(stream.Record(events_[begun_ % 3].begun));
  TS_RETURN_IF_ERROR(step_->UploadInputs(flight->planned.form));
  TS_RETURN_IF_ERROR(Launch(flight->planned));
  TS_RETURN_IF_ERROR(Download(*flight));
  return stream.Record(events_[begun_ % 3].ended);
}

// What a step that runs has drawn is known on the device alone.
std::vector<int32_t> DeviceExecutor::ResolveInputs(const StepBatch& batch) const {
  const auto vocab = static_cast<int32_t>(setup_.model->config().vocab);
  std::vector<int32_t> inputs(batch.inputs);
  for (int32_t& input : inputs) {
    if (input < 0) {
      const auto row = static_cast<size_t>(~input);
      if (running() == 1) {
        const int32_t at = flights_[finished_ % 2].planned.rows[row].logits_at;
        input = DrawnId(static_cast<uint32_t>(at));
        continue;
      }
      input = sampled_[row];
    }
    TS_CHECK(input >= 0 && input < vocab);
  }
  return inputs;
}

void DeviceExecutor::DropRow(size_t row) {
  TS_CHECK(running() > 0);
  Flight* flight = &flights_[finished_ % 2];
  const auto at = static_cast<std::ptrdiff_t>(row);
  flight->batch.rows.erase(flight->batch.rows.begin() + at);
  flight->planned.rows.erase(flight->planned.rows.begin() + at);
}

Status DeviceExecutor::FinishStep() {
  TS_CHECK(running() > 0);
  const uint64_t step = finished_++;
  const Flight& flight = flights_[step % 2];
  const uint64_t last_end_ns = std::exchange(ended_ns_, 0);
  if (!flight.begun.ok()) {
    // What came that far reads inputs that are to be written anew.
    (void)setup_.pages->stream().Synchronize();
    return flight.begun;
  }
  const uint64_t wait_ns = NowNs();
  TS_RETURN_IF_ERROR(events_[step % 3].ended.Await());
  ended_ns_ = NowNs();
  if (last_end_ns != 0) TS_RETURN_IF_ERROR(CountTime(step, wait_ns - last_end_ns));
  if (flight.batch.rows.empty()) return Status();
  counts_->CountStep(flight.batch, selectors_, flight.planned);
  if (AsksPlugins(flight.planned.form))
    counts_->CountFailures(flight.batch, selectors_, flight.planned, flight.failed.data);
  TS_RETURN_IF_ERROR(ScorePrompts(flight.batch));
  TraceStep(flight, last_end_ns);
  sampled_.assign(flight.batch.rows.size(), -1);
  states_.clear();
  ++steps_;
  return Status();
}

Status DeviceExecutor::CountTime(uint64_t step, uint64_t host_ns) {
  const auto &before = events_[(step - 1) % 3], &of = events_[step % 3];
  TS_ASSIGN_OR_RETURN(const float idle_ms,
                      runtime::Milliseconds(before.ended.handle(), of.begun.handle()));
  TS_ASSIGN_OR_RETURN(const float device_ms,
                      runtime::Milliseconds(of.begun.handle(), of.ended.handle()));
  ++times_.steps;
  times_.host_seconds += static_cast<double>(host_ns) / 1e9;
  times_.idle_seconds += double{idle_ms} / 1e3;
  times_.device_seconds += double{device_ms} / 1e3;
  return Status();
}

// Steps that were begun ahead follow each other without overlapping: from the end of the one before
// on, the device is theirs.
void DeviceExecutor::TraceStep(const Flight& flight, uint64_t last_end_ns) const {
  if (options_.trace == nullptr) return;
  uint64_t tokens[2] = {};  // by TokenClass
  for (const StepRow& row : flight.batch.rows)
    tokens[static_cast<size_t>(row.token_class)] += row.length;
  options_.trace->Add(TraceSpan{.kind = TraceKind::kStep,
                                .label = nullptr,
                                .begin_ns = std::max(flight.begin_ns, last_end_ns),
                                .end_ns = NowNs(),
                                .args = {tokens[0], tokens[1], flight.batch.rows.size()}});
}

Status DeviceExecutor::Launch(const PlannedRows& planned) {
  const DeviceStream& stream = setup_.pages->stream();
  const StepForm& form = planned.form;
  if (!setup_.graphs || !planned.replayable) return step_->LaunchAll(form, selectors_);
  auto found = std::find_if(graphs_.begin(), graphs_.end(),
                            [&](const Recorded& recorded) { return recorded.form == form; });
  if (found == graphs_.end()) {
    // Run plainly first: a kernel's first launch may load its code, which a recording must not.
    TS_RETURN_IF_ERROR(step_->LaunchAll(form, selectors_));
    TS_ASSIGN_OR_RETURN(Graph graph,
                        stream.Capture([&] { return step_->LaunchAll(form, selectors_); }));
    if (graphs_.size() >= kGraphsMax) graphs_.erase(graphs_.begin());
    graphs_.push_back({form, std::move(graph)});
    return Status();
  }
  std::rotate(found, found + 1, graphs_.end());
  return stream.Launch(graphs_.back().graph);
}

bool DeviceExecutor::AsksPlugins(const StepForm& form) const {
  for (size_t i = 0; i < selectors_.size(); ++i) {
    if (selectors_[i].scorer && (form.groups >> (i + 1) & 1) != 0) return true;
  }
  return false;
}

Status DeviceExecutor::Download(const Flight& flight) {
  const Stream stream = setup_.pages->stream().handle();
  const StepForm& form = flight.planned.form;
  if (AsksPlugins(form)) {
    const ModelConfig& c = setup_.model->config();
    const uint64_t flags = uint64_t{form.generated} * c.layers * c.kv_heads;
    TS_RETURN_IF_ERROR(
        runtime::Copy(flight.failed.data, step_->failed().data, flags * sizeof(uint32_t), stream));
  }
  const uint64_t vocab = setup_.model->config().vocab;
  TS_RETURN_IF_ERROR(runtime::Copy(flight.finite.data, step_->finite().data,
                                   form.rows() * sizeof(uint32_t), stream));
  uint32_t first = UINT32_MAX, end = 0;  // logits that the host wants
  for (const PlannedRow& row : flight.planned.rows) {
    if (row.logits_at < 0 || row.draws) continue;
    const auto at = static_cast<uint32_t>(row.logits_at);
    first = std::min(first, at);
    end = std::max(end, at + row.logits_count);
  }
  if (end > first) {
    TS_RETURN_IF_ERROR(runtime::Copy(logits_.data + first * vocab,
                                     step_->logits().data + first * vocab,
                                     (end - first) * vocab * sizeof(float), stream));
  }
  if (form.drawn == 0) return Status();
  const auto asks = [](const PlannedRow& row) { return row.scored >= 0; };
  if (std::any_of(flight.planned.rows.begin(), flight.planned.rows.end(), asks)) {
    TS_RETURN_IF_ERROR(runtime::Copy(flight.scores.data, step_->scores().data,
                                     form.drawn * sizeof(TokenScores), stream));
  }
  TS_RETURN_IF_ERROR(
      runtime::Copy(flight.tops.data, step_->tops().data, form.drawn * sizeof(float), stream));
  return runtime::Copy(flight.drawn.data, step_->tokens().data, form.drawn * sizeof(int32_t),
                       stream);
}

// Log-probabilities of prompts' next tokens, some rows at a time.
Status DeviceExecutor::ScorePrompts(const StepBatch& batch) {
  logprobs_.resize(std::max(logprobs_.size(), batch.rows.size()));
  top_logprobs_.resize(logprobs_.size());
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    logprobs_[r].clear();
    top_logprobs_[r].clear();
    if (batch.rows[r].want != Want::kLogProbs) continue;
    const uint32_t targets = batch.rows[r].length - 1;
    logprobs_[r].resize(targets);
    top_logprobs_[r].resize(targets);
    for (uint32_t i = 0; i < targets; i += DeviceStep::logit_rows()) {
      TS_RETURN_IF_ERROR(ScoreRow(batch, r, i, std::min(DeviceStep::logit_rows(), targets - i)));
    }
  }
  return Status();
}

Status DeviceExecutor::ScoreRow(const StepBatch& batch, size_t row, uint32_t first,
                                uint32_t count) {
  const DeviceStream& stream = setup_.pages->stream();
  const uint64_t vocab = setup_.model->config().vocab;
  std::vector<uint32_t> wanted(count);
  std::iota(wanted.begin(), wanted.end(), last().planned.rows[row].first_row + first);
  TS_RETURN_IF_ERROR(step_->LaunchScoring(wanted));
  TS_RETURN_IF_ERROR(runtime::Copy(scoring_.data, step_->scoring().data,
                                   count * vocab * sizeof(float), stream.handle()));
  TS_RETURN_IF_ERROR(stream.Synchronize());
  const StepRow& of = batch.rows[row];
  setup_.threads->For(count, [&](uint32_t i, uint32_t) {
    const std::span<const float> logits(scoring_.data + i * vocab, vocab);
    const float log_sum = LogSumExp(logits);
    const auto next = static_cast<size_t>(batch.inputs[of.first_input + first + i + 1]);
    logprobs_[row][first + i] = logits[next] - log_sum;
    top_logprobs_[row][first + i] = TopLogprobs(logits, log_sum, of.top_logprobs);
  });
  return Status();
}

// ---- what came of it ----------------------------------------------------------------------------

bool DeviceExecutor::finite(size_t row) const {
  const PlannedRow& at = last().planned.rows[row];
  const uint32_t* first = last().finite.data + at.first_row;
  return std::all_of(first, first + at.length, [](uint32_t is) { return is != 0; });
}

std::optional<DrawnToken> DeviceExecutor::drawn(size_t row) const {
  const PlannedRow& at = last().planned.rows[row];
  if (!at.draws) return std::nullopt;
  DrawnToken drawn{.token = last().drawn.data[at.logits_at]};
  if (at.scored >= 0) AddScores(last().scores.data[at.logits_at], at.scored, &drawn);
  if (!std::isfinite(last().tops.data[at.logits_at]) || !std::isfinite(drawn.logprob))
    drawn.token = -1;
  return drawn;
}

// As LogSumExp and TopLogprobs have it.
void DeviceExecutor::AddScores(const TokenScores& scores, int32_t wanted, DrawnToken* drawn) const {
  const float log_sum = std::isfinite(scores.top) ? scores.top + std::log(scores.sum) : scores.top;
  drawn->logprob = scores.chosen - log_sum;
  const uint32_t count = std::min(static_cast<uint32_t>(wanted), setup_.model->config().vocab);
  for (uint32_t i = 0; i < count; ++i)
    drawn->top.push_back({static_cast<int32_t>(scores.tokens[i]), scores.logits[i] - log_sum});
  std::sort(drawn->top.begin(), drawn->top.end(), [](const TokenLogprob& a, const TokenLogprob& b) {
    return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
  });
}

std::span<float> DeviceExecutor::logits(size_t row) {
  const PlannedRow& at = last().planned.rows[row];
  TS_CHECK(at.logits_at >= 0 && !at.draws);
  const uint64_t vocab = setup_.model->config().vocab;
  return {logits_.data + static_cast<uint64_t>(at.logits_at) * vocab, vocab * at.logits_count};
}

void DeviceExecutor::FinalState(size_t row, uint32_t i, std::span<float> out) const {
  const ModelConfig& config = setup_.model->config();
  const PlannedRows& planned = last().planned;
  TS_CHECK(running() == 0 && i < planned.rows[row].length && out.size() == config.dim);
  if (states_.empty()) {
    states_.resize(uint64_t{planned.form.rows()} * config.dim);
    const Stream stream = setup_.pages->stream().handle();
    const Status copied =
        runtime::Copy(states_.data(), step_->x().data, states_.size() * sizeof(float), stream);
    // A device that is lost here is found lost by the next step; a state of no numbers says so now.
    if (!copied.ok() || !runtime::Synchronize(stream).ok())
      std::fill(states_.begin(), states_.end(), NAN);
  }
  const float* x = states_.data() + uint64_t{planned.rows[row].first_row + i} * config.dim;
  setup_.model->FinalNorm(x, out.data());
}

StepCost DeviceExecutor::cost() const {
  StepCost cost;
  cost.weight_bytes = setup_.model->step_bytes();
  cost.kv_bytes = counts_->kv_bytes();
  const DeviceWork& work = counts_->work();
  const auto generated = static_cast<size_t>(TokenClass::kGenerated);
  const auto prompt = static_cast<size_t>(TokenClass::kPrompt);
  const auto add = [&](DotKind kind, uint64_t multiply_adds) {
    cost.multiply_adds[static_cast<size_t>(kind)] += multiply_adds;
  };
  const TokenProducts &layers = layer_products_, &head = head_products_;
  add(DotKind::kU8S8, work.tokens[generated] * layers.coded + work.logits * head.coded);
  add(DotKind::kF32, work.tokens[generated] * layers.floats + work.logits * head.floats);
  add(DotKind::kBF16, work.tokens[prompt] * (layers.coded + layers.floats));
  add(DotKind::kF32, work.attention[generated]);
  add(step_->prompt_decodes() ? DotKind::kF32 : DotKind::kBF16, work.attention[prompt]);
  return cost;
}

Result<uint32_t> DeviceExecutor::FindSelector(const std::string& text) {
  TS_ASSIGN_OR_RETURN(const SelectorSpec spec, ParseSelector(text));
  if (spec.table == nullptr) return 0u;
  for (size_t i = 0; i < selectors_.size(); ++i) {
    if (selectors_[i].spec.resolved == spec.resolved) return static_cast<uint32_t>(i + 1);
  }
  TS_ASSIGN_OR_RETURN(DeviceSelector selector, OpenSelector(spec));
  if (selectors_.size() >= kDeviceSelectorsMax) {
    return Status(Code::kResourceExhausted,
                  fmt::format("selector '{}': {} different ones are open already, the most that a "
                              "device takes",
                              text, kDeviceSelectorsMax));
  }
  if (DeviceEntryOf(spec.table) != nullptr) {
    TS_RETURN_IF_ERROR(runtime::UseDevice(setup_.device.index));
    TS_ASSIGN_OR_RETURN(selector.scorer, scorers_.Open(spec, shape_));
  }
  selectors_.push_back(std::move(selector));
  return static_cast<uint32_t>(selectors_.size());
}

Status DeviceExecutor::CheckSelector(const SelectorSpec& spec) const {
  return spec.table == nullptr ? Status() : OpenSelector(spec).status();
}

Result<DeviceSelector> DeviceExecutor::OpenSelector(const SelectorSpec& spec) const {
  TS_RETURN_IF_ERROR(CheckStored(spec, cache_->codec()));
  TS_ASSIGN_OR_RETURN(DeviceSelector selector, DeviceSelectorOf(spec, cache_->shape(0).type));
  if (selector.cascade) TS_RETURN_IF_ERROR(step_->CheckLongestCascade());
  TS_ASSIGN_OR_RETURN(const SummaryOffsets at, PlaceOf(spec, shape_, needs_, places_));
  selector.summary_at = at.own;
  return selector;
}

std::string DeviceExecutor::selector_resolved(uint32_t selector) const {
  return selector == 0 ? "full" : selectors_[selector - 1].spec.resolved;
}

Result<uint32_t> DeviceExecutor::FindSteps(std::span<const std::string> texts) {
  TS_RETURN_IF_ERROR(CheckDeviceSteps(texts));
  TS_ASSIGN_OR_RETURN(const std::vector<StepSpec> specs, ParseStepPlugins(texts));
  return step_sets_.Find(specs, setup_.model->config());
}

Status CheckDeviceSteps(std::span<const std::string> texts) {
  TS_ASSIGN_OR_RETURN(const std::vector<StepSpec> specs, ParseStepPlugins(texts));
  for (const StepSpec& spec : specs) {
    const char* reason = nullptr;
    if (spec.table->leave != nullptr)
      reason =
          "it lets single tokens leave between two layers, and a device runs all of a step's "
          "tokens through all layers without asking";
    if (spec.table->prune != nullptr)
      reason = "it drops tokens by the attention that they get, which stays on the device";
    if (reason == nullptr) continue;
    return Status(Code::kUnsupported,
                  fmt::format("step_plugins '{}': {}; it is for the CPU", spec.typed, reason));
  }
  return Status();
}

}  // namespace tinyserve::cuda
