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

// A batch's row on the device.
struct PlannedRow {
  uint32_t first_row = 0, length = 0;  // on the device, of as many
  int32_t logits_at = -1;              // the place of its first logits; -1: it has none
  uint32_t logits_count = 0;
  bool draws = false;   // the device draws its token
  int32_t scored = -1;  // and names so many others beside it, with their logits; -1: no scores
};
struct PlannedRows {
  StepForm form;
  bool replayable = false;       // the form is one of a few
  std::vector<PlannedRow> rows;  // by batch row
  std::vector<RowReads> reads;   // by row of decode attention
  // What the i-th token of a batch row reads. REQUIRES: it is a generated one.
  const RowReads& ReadsOf(size_t row, uint32_t i) const { return reads[rows[row].first_row + i]; }
};

class DevicePlan {
 public:
  // `frequencies`, `magnitude`: of RoPE, for positions below tokens_max.
  DevicePlan(const KvCache* cache, DeviceStep* step, const std::vector<float>& frequencies,
             float magnitude, uint32_t tokens_max, uint32_t bucket_max);

  // Fills the step's inputs. `tokens`: [inputs] resolved (StepInputs::ids). A batch of generated
  // tokens, one of each sequence, gets a form of a few kinds (rows and contexts rounded up), so
  // that its launches can be recorded. What is returned is valid until the next call.
  const PlannedRows& Plan(const StepBatch& batch, std::span<const int32_t> tokens,
                          const std::vector<DeviceSelector>& selectors);

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
  void FillDraw(const StepBatch& batch, const StepRow& row, uint32_t i);
  void RoundUp();
  void ClearRow(uint32_t row);

  const KvCache* cache_;
  DeviceStep* step_;
  uint32_t bucket_max_, pairs_, group_;
  bool coded_, learned_;        // learned_: of positions
  std::vector<float> cos_sin_;  // [tokens_max][pairs][2]
  ChoicesInForce choices_;
  PlannedRows planned_;
  std::vector<uint32_t> table_of_;  // by batch row
  std::vector<PromptRun> runs_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_PLAN_H_
