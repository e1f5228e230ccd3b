// One step on a CUDA device: what is uploaded for it, its activations, and the launches in their
// order. Rows of class generated come first, those of class prompt after them.
//
// A step's launches read all that changes from step to step from StepInputs, which lie at the same
// addresses for steps of the same StepForm: launches can be recorded once for it and replayed.
#ifndef TINYSERVE_DEVICE_DEVICE_STEP_H_
#define TINYSERVE_DEVICE_DEVICE_STEP_H_

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "device/device_arena.h"
#include "device/device_inputs.h"
#include "device/device_model.h"
#include "device/device_selector.h"
#include "kernels/cuda/attention_cascade.h"
#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/seal.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

struct DeviceStepOptions {
  uint32_t rows_max, sequences_max, sequence_tokens_max, logits_max;
  uint32_t uncommitted_max;  // tokens of a sequence beyond those committed, as the cache has it
  uint32_t processors;       // of the device
  // Of the selectors that keep boxes of sub-pages, each place once.
  std::vector<SubPageBoxes> sub_pages;
  bool keeps_choices;  // any of the selectors does
};

class DeviceStep {
 public:
  // All memory is allocated here. `model` and `cache` must outlive the step. Errors: kOutOfMemory,
  // those of the device.
  static Result<std::unique_ptr<DeviceStep>> Create(const DeviceModel* model, const KvCache* cache,
                                                    const DeviceStream* stream,
                                                    const DeviceStepOptions& options);

  StepInputs& inputs() { return inputs_; }
  uint32_t query_group() const { return shape_.group; }
  uint32_t vocab() const { return model_->config().vocab; }
  uint32_t table_pages() const { return table_pages_; }
  uint32_t open_pages() const { return open_pages_; }
  uint32_t raw_pages() const { return raw_pages_; }
  // Prompt rows go through decode attention where no kernel of prompt rows reads their pages.
  bool prompt_decodes() const { return prompt_decodes_; }

  // Whether the cascade reads the longest sequence. Errors: kUnsupported.
  Status CheckLongestCascade() const { return CheckCascade(shape_, table_pages_); }

  // Copies what the launches of a form read.
  Status UploadInputs(const StepForm& form) { return inputs_.Copy(form, *stream_); }
  // Embedding, layers, logits of the wanted rows, tokens of the drawn ones. `selectors`: of the
  // groups from 1 on.
  Status LaunchAll(const StepForm& form, const std::vector<DeviceSelector>& selectors);
  // scoring() = logits of these rows, logit_rows() at most. REQUIRES: what it copied before has
  // arrived.
  Status LaunchScoring(std::span<const uint32_t> rows);
  static constexpr uint32_t logit_rows() { return 64; }
  // Rows of a step that the device may draw after.
  uint32_t draws_max() const { return draws_max_; }

  // What a step leaves, in memory of the device.
  const Array<float>& x() const { return x_; }                  // [R][dim]
  const Array<float>& logits() const { return logits_; }        // [L][vocab]
  const Array<float>& scoring() const { return scoring_; }      // [logit_rows()][vocab]
  const Array<uint32_t>& finite() const { return finite_; }     // [R]
  const Array<int32_t>& tokens() const { return drawn_; }       // [D]
  const Array<float>& tops() const { return tops_; }            // [D] the largest logits of those
  const Array<TokenScores>& scores() const { return scores_; }  // [D] of those that ask for them
  // [R][layers][kv_heads] 1 where scores of a plugin were no numbers, so that everything was read;
  // of rows and layers that it was asked for alone.
  const Array<uint32_t>& failed() const { return failed_; }
  uint64_t bytes() const { return arena_.memory().size(); }

 private:
  DeviceStep() = default;
  void Measure();
  Status AllocateInputs();
  Status AllocateActivations();
  Status EmbedTokens(const StepForm& form);
  // `rows` [count] of x.
  Status LaunchLogits(const Array<const uint32_t>& rows, const Array<float>& to);
  Status LaunchDraws(const StepForm& form);
  Status RunLayer(const StepForm& form, uint32_t l, const std::vector<DeviceSelector>& selectors);
  // Makes of rows what a product takes; from `from` [count] where they are not the form's own.
  Status MakeForms(const StepForm& form, RowSource source, const Array<float>& x, uint32_t cols,
                   const DeviceNorm& norm, const DeviceLinear& next);
  Status Multiply(const StepForm& form, const DeviceLinear& linear, const Array<float>& out,
                  uint32_t stride, Epilogue epilogue);
  Status Append(const StepForm& form, uint32_t l);
  Status Seal(const StepForm& form, uint32_t l);
  Status Attend(const StepForm& form, uint32_t l, const std::vector<DeviceSelector>& selectors);
  Status AttendRows(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                    const DeviceSelector* selector, uint32_t group);
  Status AttendPromptRows(const StepForm& form, uint32_t l);
  DecodeStep RowsOf(const StepForm& form, uint32_t first, uint32_t rows, uint32_t group) const;
  OpenTokens RawOf(uint32_t l, uint32_t first, uint32_t rows, uint32_t group) const;
  Selection SelectionOf(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                        const DeviceSelector& selector) const;
  KeptChoices ChoicesOf(uint32_t l, uint32_t first, uint32_t rows) const;
  // What a selector but the cascade scores pages by.
  DeviceRecords ScoredOf(uint32_t l, const DeviceSelector& selector) const;
  // Scores pages by the plugin's kernel, and says so in `selection`.
  Status ScoreByPlugin(uint32_t l, uint32_t first, const DeviceSelector& selector,
                       const DecodeStep& step, const DeviceRecords& records, Selection* selection);
  Cascade CascadeOf(const StepForm& form, uint32_t l, uint32_t first, uint32_t rows,
                    const DeviceSelector& selector) const;
  uint64_t Pages() const;  // of the pool
  DevicePages PagesOf(uint32_t l) const;
  DevicePages RawPagesOf(uint32_t l) const;
  Slabs<uint8_t> RecordsOf(uint32_t l) const;
  Slabs<uint8_t> SummariesOf(uint32_t l) const;

  const DeviceModel* model_ = nullptr;
  const KvCache* cache_ = nullptr;
  const DeviceStream* stream_ = nullptr;
  DeviceStepOptions options_{};
  DecodeShape shape_{};  // of the pages of blocks
  KvType raw_type_{};
  bool coded_ = false, prompt_decodes_ = false;
  uint32_t q_dim_ = 0, qkv_dim_ = 0, cols_max_ = 0, attend_rows_ = 0;
  uint32_t table_pages_ = 0, open_pages_ = 0, raw_pages_ = 0, draws_max_ = 0;

  Arena<DeviceMemory> arena_;
  Arena<PinnedMemory> pinned_;
  StepInputs inputs_;
  Array<float> x_{}, qkv_{}, q_{}, o_{}, a_{};
  Array<float> floats_{}, code_scales_{}, half_scales_{};
  Array<uint32_t> codes_{}, code_sums_{};
  Array<F16> halves_{};
  Array<float> partials_{}, head_scores_{}, cascade_logits_{};
  Array<uint8_t> cascade_reads_{};
  Array<uint32_t> arrived_{}, lists_{}, list_tokens_{}, failed_{};
  Array<uint16_t> kept_choices_{};  // [layers][places][KV heads][table_pages]
  Array<float> logits_{}, scoring_{}, weights_{}, edited_{};
  Array<double> sums_{};
  Array<uint32_t> scored_host_{}, scored_{};  // [logit_rows()]
  Array<uint32_t> finite_{};
  Array<int32_t> row_ids_{};  // [R] the tokens of the rows
  Array<int32_t> drawn_{};
  Array<float> tops_{};
  Array<TokenScores> scores_{};
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_STEP_H_
