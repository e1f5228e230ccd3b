// From a StepBatch to what a step on a device reads: rows in the device's order, tables, lists of
// pages, and how much of everything there is.
#ifndef TINYSERVE_DEVICE_DEVICE_PLAN_H_
#define TINYSERVE_DEVICE_DEVICE_PLAN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "device/device_choices.h"
#include "device/device_selector.h"
#include "device/device_step.h"
#include "engine/step_batch.h"
#include "kv/kv_cache.h"

namespace tinyserve::cuda {

// A query of the token at `position`, by the budget of `selector`, which may be null: what a choice
// that is in force changes of it is left out.
RowReads ReadsAt(const KvCache& cache, const DeviceSelector* selector, uint32_t position);

class DevicePlan {
 public:
  // `frequencies`, `magnitude`: of RoPE, for positions below tokens_max.
  DevicePlan(const KvCache* cache, DeviceStep* step, const std::vector<float>& frequencies,
             float magnitude, uint32_t tokens_max, uint32_t bucket_max);

  // Fills the step's inputs. `tokens`: [inputs] resolved. A batch of generated tokens, one of each
  // sequence, gets a form of a few kinds (rows and contexts rounded up), so that its launches can
  // be recorded.
  void Plan(const StepBatch& batch, std::span<const int32_t> tokens,
            const std::vector<DeviceSelector>& selectors);

  const StepForm& form() const { return form_; }
  bool replayable() const { return replayable_; }
  // Of a batch row: its first row on the device and how many there are; the place of its first
  // logits, -1: none, and how many; whether the device draws its token.
  size_t batch_rows() const { return first_row_.size(); }
  uint32_t first_row(size_t row) const { return first_row_[row]; }
  uint32_t length(size_t row) const { return length_[row]; }
  int32_t logits_at(size_t row) const { return logits_at_[row]; }
  uint32_t logits_count(size_t row) const { return logits_count_[row]; }
  bool draws(size_t row) const { return draws_[row]; }
  // What the i-th token of a batch row reads. REQUIRES: it is a generated one.
  const RowReads& reads(size_t row, uint32_t i) const { return reads_[first_row_[row] + i]; }

 private:
  void PlaceRows(const StepBatch& batch);
  void FillRun(const StepRow& row, size_t r, std::span<const int32_t> tokens,
               const std::vector<DeviceSelector>& selectors);
  void FillRow(const StepRow& row, uint32_t at, uint32_t position,
               const std::vector<DeviceSelector>& selectors);
  void FillTables(const StepRow& row, uint32_t table);
  void ListPages(const StepRow& row);
  void PlanPrompts(const StepBatch& batch);
  void PlanLogits(const StepBatch& batch);
  void AddWanted(const StepRow& row, size_t r);
  void RoundUp();
  void ClearRow(uint32_t row);

  const KvCache* cache_;
  DeviceStep* step_;
  uint32_t bucket_max_, pairs_, group_;
  bool coded_;
  std::vector<float> cos_sin_;  // [tokens_max][pairs][2]
  StepForm form_;
  ChoicesInForce choices_;
  std::vector<RowReads> reads_;  // by row of decode attention
  bool replayable_ = false;
  std::vector<uint32_t> first_row_, length_, table_of_, logits_count_;  // by batch row
  std::vector<int32_t> logits_at_;
  std::vector<bool> draws_;
  std::vector<PromptRun> runs_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_PLAN_H_
