// Runs one StepBatch on a CUDA device.
#ifndef TINYSERVE_DEVICE_DEVICE_EXECUTOR_H_
#define TINYSERVE_DEVICE_DEVICE_EXECUTOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "device/device_arena.h"
#include "device/device_counts.h"
#include "device/device_model.h"
#include "device/device_pages.h"
#include "device/device_plan.h"
#include "device/device_selector.h"
#include "device/device_step.h"
#include "engine/executor.h"
#include "engine/step_sets.h"
#include "kernels/cuda/device.h"

namespace tinyserve::cuda {

// What an executor computes on; all of it must outlive the executor.
struct DeviceSetup {
  const DeviceModel* model;
  DevicePageMemory* pages;
  ThreadPool* threads;  // for what the host makes of logits
  DeviceInfo device;
  // Whether steps that decode alone are recorded as graphs and replayed; the same launches else.
  bool graphs = true;
};

// Multiply-adds of one token's products, by what a generated row's weights meet: codes or floats.
struct TokenProducts {
  uint64_t coded = 0, floats = 0;
};

// Whether step plugins can be served on a device: those that see logits alone, which come to the
// host. Errors: as ParseStepPlugins; kUnsupported, with the plugin and what it does.
Status CheckDeviceSteps(std::span<const std::string> texts);

class DeviceExecutor : public Executor {
 public:
  // Errors: kInvalidArgument, kOutOfMemory, kUnsupported (a KV type or selector without kernels),
  // those of the device.
  static Result<std::unique_ptr<DeviceExecutor>> Create(const DeviceSetup& setup,
                                                        const ExecutorOptions& options);

  ~DeviceExecutor() override;

  KvCache* cache() override { return cache_.get(); }
  Status RunStep(const StepBatch& batch) override {
    BeginStep(batch);
    return FinishStep();
  }
  bool begins_ahead() const override { return true; }
  DrawLimits draw_limits() const override { return {.draws = true, .edits_max = kEditsMax}; }
  void BeginStep(const StepBatch& batch) override;
  void DropRow(size_t row) override;
  Status FinishStep() override;

  bool finite(size_t row) const override;
  std::optional<DrawnToken> drawn(size_t row) const override;
  std::span<float> logits(size_t row) override;
  std::span<const float> logprobs(size_t row) const override { return logprobs_[row]; }
  std::span<const std::vector<TokenLogprob>> top_logprobs(size_t row) const override {
    return top_logprobs_[row];
  }
  void FinalState(size_t row, uint32_t i, std::span<float> out) const override;
  void SetSampled(size_t row, int32_t token) override { sampled_[row] = token; }

  StepCost cost() const override;
  DeviceTimes TakeDeviceTimes() override {
    ended_ns_ = 0;
    return std::exchange(times_, DeviceTimes());
  }
  SelectionCounts selection_counts() const override { return counts_->total(); }
  SelectionCounts ReadsOf(size_t row) const override { return counts_->OfRow(row); }
  std::vector<SelectionCounts> strip_counts() const override { return counts_->strips(); }
  void ResetSelectionCounts() override { counts_->Reset(); }
  // The lists of chosen pages stay on the device: what was read is told as if it were everything.
  std::span<const uint64_t> PagesRead(SequenceSlot, uint32_t, uint32_t, uint32_t) const override {
    return {};
  }
  void SetSelectionTimed(bool) override {}
  void SetShadowShare(double) override {}
  std::vector<ShadowStats> shadow_stats() const override { return {}; }
  uint64_t shadow_checks() const override { return 0; }

  Result<uint32_t> FindSelector(const std::string& text) override;
  Status CheckSelector(const SelectorSpec& spec) const override;
  std::string selector_resolved(uint32_t selector) const override;
  Result<uint32_t> FindSteps(std::span<const std::string> texts) override;
  Status CheckSteps(std::span<const std::string> texts) const override {
    return CheckDeviceSteps(texts);
  }
  const StepPlugins* steps_of(uint32_t steps) const override { return step_sets_.at(steps); }
  std::vector<StepPluginStats> step_stats() const override { return step_sets_.stats(); }
  uint32_t MakerOf(uint32_t selector, uint32_t steps) const override {
    return steps * (kDeviceSelectorsMax + 1) + selector;
  }
  uint64_t steps() const override { return steps_; }

  // Graphs that are kept.
  size_t graphs() const { return graphs_.size(); }

 private:
  struct Recorded {
    StepForm form;
    Graph graph;
  };
  // A step from its begin until the one after the next begins.
  struct Flight {
    StepBatch batch;
    PlannedRows planned;
    Status begun;
    uint64_t begin_ns = 0;
    Array<uint32_t> finite{};     // [R]
    Array<uint32_t> failed{};     // as the step has them
    Array<int32_t> drawn{};       // [D]
    Array<float> tops{};          // [D]
    Array<TokenScores> scores{};  // [D]
  };

  DeviceExecutor() = default;
  Status OpenCache(const ExecutorOptions& options);
  Status ListSubPages(std::span<const SelectorSpec> specs, KvType stored);
  // Errors: as FindSelector.
  Result<DeviceSelector> OpenSelector(const SelectorSpec& spec) const;
  uint64_t running() const { return begun_ - finished_; }
  const Flight& last() const { return flights_[(finished_ - 1) % 2]; }
  std::vector<int32_t> ResolveInputs(const StepBatch& batch) const;
  Status Enqueue(Flight* flight);
  Status Launch(const PlannedRows& planned);
  Status Download(const Flight& flight);
  void AddScores(const TokenScores& scores, int32_t wanted, DrawnToken* drawn) const;
  bool AsksPlugins(const StepForm& form) const;  // for scores
  void TraceStep(const Flight& flight, uint64_t last_end_ns) const;
  Status CountTime(uint64_t step, uint64_t host_ns);
  Status ScorePrompts(const StepBatch& batch);
  Status ScoreRow(const StepBatch& batch, size_t row, uint32_t first, uint32_t count);

  DeviceSetup setup_{};
  ExecutorOptions options_;
  std::unique_ptr<KvCache> cache_;
  tinyserve_shape shape_{};
  // What selectors were opened for, and where what they keep of pages lies.
  SelectorNeeds needs_{};
  std::vector<SummaryPlace> places_;
  std::vector<SubPageBoxes> sub_pages_;
  DeviceScorers scorers_;
  std::vector<DeviceSelector> selectors_;  // in memory of their own before a step names them
  StepSets step_sets_;
  std::unique_ptr<DeviceStep> step_;
  std::unique_ptr<DevicePlan> plan_;
  std::unique_ptr<DeviceCounts> counts_;
  TokenProducts layer_products_, head_products_;
  std::vector<Recorded> graphs_;  // those used last at the end
  Arena<PinnedMemory> pinned_;
  Flight flights_[2];                  // step i is at i % 2
  uint64_t begun_ = 0, finished_ = 0;  // steps
  struct {
    Event begun, ended;
  } events_[3];  // step i's are at i % 3: two run, one has ended
  DeviceTimes times_;
  uint64_t ended_ns_ = 0;  // when the last step was found to have ended; 0: no step is to follow it
  Array<float> logits_{};  // [L][vocab]
  Array<float> scoring_{};  // [logit_rows][vocab]
  std::vector<int32_t> sampled_;
  std::vector<std::vector<float>> logprobs_;
  std::vector<std::vector<std::vector<TokenLogprob>>> top_logprobs_;
  mutable std::vector<float> states_;  // [rows][dim] of the last step, once somebody asks
  uint64_t steps_ = 0;                 // with rows
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_EXECUTOR_H_
