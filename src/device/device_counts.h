// What a device's steps read: it follows from positions and budgets alone, so that nothing is asked
// of the device. Of the cascade that is the most that it reads: how many tokens weigh too little
// (least_share) only the device knows.
#ifndef TINYSERVE_DEVICE_DEVICE_COUNTS_H_
#define TINYSERVE_DEVICE_DEVICE_COUNTS_H_

#include <cstdint>
#include <vector>

#include "attend/selection_counts.h"
#include "device/device_plan.h"
#include "device/device_selector.h"
#include "engine/step_batch.h"
#include "kv/kv_cache.h"

namespace tinyserve::cuda {

// What a step computes, by TokenClass: tokens, multiply-adds of their attention; rows of logits.
struct DeviceWork {
  uint64_t tokens[2] = {}, attention[2] = {}, logits = 0;
};

class DeviceCounts {
 public:
  DeviceCounts(const KvCache* cache, uint32_t layers, uint32_t group);

  // `planned`: of the batch.
  void CountStep(const StepBatch& batch, const std::vector<DeviceSelector>& selectors,
                 const PlannedRows& planned);

  // Rows of the step at which a plugin's scores were no numbers, so that everything was read:
  // `failed` [rows of the device][layers][KV heads].
  void CountFailures(const StepBatch& batch, const std::vector<DeviceSelector>& selectors,
                     const PlannedRows& planned, const uint32_t* failed);

  void Reset();

  // Of queries that were asked to select, in all steps; by [layer][KV head].
  const SelectionCounts& total() const { return total_; }
  const std::vector<SelectionCounts>& strips() const { return strips_; }
  // Of a row of the last step, all of its queries. REQUIRES: a row of generated tokens.
  const SelectionCounts& OfRow(size_t row) const { return rows_[row]; }
  // KV bytes that the last step must read: what a run sees once, or what was selected.
  uint64_t kv_bytes() const { return kv_bytes_; }
  const DeviceWork& work() const { return work_; }  // of the last step

 private:
  void CountWork(const StepRow& row, uint64_t generated_multiply_adds);
  SelectionCounts QueryAt(const DeviceSelector* selector, const RowReads& reads,
                          uint32_t position) const;
  SelectionCounts CascadeAt(const DeviceSelector& selector, const RowReads& reads,
                            uint32_t position, uint32_t layer) const;

  const KvCache* cache_;
  uint32_t layers_, kv_heads_, group_;
  SelectionCounts total_;
  std::vector<SelectionCounts> strips_, rows_;
  uint64_t kv_bytes_ = 0;
  DeviceWork work_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_COUNTS_H_
