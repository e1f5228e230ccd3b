// Generated tokens that leave the model before its last layer, where a step plugin says so.
#ifndef TINYSERVE_ENGINE_EARLY_EXITS_H_
#define TINYSERVE_ENGINE_EARLY_EXITS_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "model/model.h"
#include "step/step_plugin.h"

namespace tinyserve {

class EarlyExits {
 public:
  // All must outlive this. scratch: [rows_max][vocab], for logits of so many rows at a time.
  EarlyExits(const Model* model, ThreadPool* threads, float* scratch, uint32_t rows_max)
      : model_(model), threads_(threads), scratch_(scratch), rows_max_(rows_max) {}

  // Takes a row's logits, [vocab], when it leaves.
  using OnLeave = std::function<void(uint32_t row, const float* logits)>;

  // A step begins. plugins: of each row, null where it must run through all layers.
  void Begin(Step* step, std::span<const StepPlugins* const> plugins,
             std::span<const uint32_t> positions);
  // Whether any row may leave in this step.
  bool any() const { return any_; }
  // So many layers have run: asks the plugins of the rows that are left.
  void AfterLayer(uint32_t layers_done, const OnLeave& on_leave);
  // Logits that were computed to ask.
  uint64_t asked() const { return asked_count_; }
  // Rows that ran in each layer, of the layers so far.
  std::span<const uint32_t> rows_of_layer() const { return rows_of_layer_; }

 private:
  void Ask(std::span<const uint32_t> rows, uint32_t layers_done, const OnLeave& on_leave);

  const Model* model_;
  ThreadPool* threads_;
  float* scratch_;
  uint32_t rows_max_;
  Step* step_ = nullptr;
  bool any_ = false;
  uint64_t asked_count_ = 0;
  std::span<const StepPlugins* const> plugins_;  // [row]
  std::span<const uint32_t> positions_;          // [row]
  std::vector<uint32_t> asked_, leaving_, rows_of_layer_;
  std::vector<uint8_t> leaves_;  // of asked rows; bytes, for threads write them
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_EARLY_EXITS_H_
