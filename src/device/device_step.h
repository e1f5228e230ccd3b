// One step on a CUDA device: what is uploaded for it, its activations, and the launches in their
// order. Rows of class generated come first, those of class prompt after them.
//
// A step's launches read all that changes from step to step from arrays at fixed addresses
// (StepInputs), so that they can be recorded once for a StepForm and replayed.
#ifndef TINYSERVE_DEVICE_DEVICE_STEP_H_
#define TINYSERVE_DEVICE_DEVICE_STEP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "device/device_arena.h"
#include "device/device_model.h"
#include "device/device_selector.h"
#include "kernels/cuda/attention_cascade.h"
#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/seal.h"
#include "kv/kv_cache.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Selectors that one executor has at most; group 0 of a step's rows reads everything.
constexpr uint32_t kDeviceSelectorsMax = 8;
constexpr uint32_t kReadGroups = kDeviceSelectorsMax + 1;

// An array that the host writes and a step reads. What the step before reads lies in `spare`.
template <class T>
struct Upload {
  Array<T> host, spare, device;

  Array<const T> part(uint64_t first, uint64_t count) const { return {device.data + first, count}; }
  Status Copy(const DeviceStream& stream, uint64_t count) const {
    if (count == 0) return Status();
    return runtime::Copy(device.data, host.data, count * sizeof(T), stream.handle());
  }
};

// R rows, S sequences, and what is drawn.
struct StepInputs {
  Upload<int32_t> ids;           // [R] or DrawnId; -1: the row is not in use
  Upload<int32_t> learned;       // [R] absolute positions, of models that learn them; -1: as ids
  Upload<uint32_t> positions;    // [R] where the row is written in its table
  Upload<uint32_t> table_of;     // [R]
  Upload<float> cos_sin;         // [R][pairs][2]
  Upload<uint32_t> tables;       // [S][table_pages] of blocks
  Upload<uint32_t> open_tables;  // [S][open_pages] of raw pages, where others are coded
  Upload<uint32_t> raw_tables;   // [R][raw_pages] that a row reads of them
  // By group, of the rows that read as it does, else 0: tokens in the pages of blocks, and in raw
  // ones.
  Upload<uint32_t> tokens[kReadGroups], raw_tokens[kReadGroups];  // [R]
  Upload<uint32_t> budgets, newer, candidates;                    // [R], of rows that select
  Upload<uint32_t> full_tokens, value_tokens;                     // [R], of those by the cascade
  // [R], of those whose choices stay in force; none where no selector keeps any.
  Upload<RowChoice> choices;
  Upload<ChoicePlaces> choice_places;
  Upload<PromptRun> runs;
  Upload<PromptBlock> blocks;
  Upload<uint32_t> full_pages, seal_from, seal_to;
  Upload<uint32_t> wanted;  // [L] rows whose logits are computed
  Upload<float> temperatures, min_ps;
  Upload<uint64_t> seeds, draw_positions;
};

// How a step's launches are shaped: all that is passed by value.
struct StepForm {
  uint32_t generated = 0, prompt = 0;  // rows
  uint32_t tables = 0, first_prompt_table = 0;
  uint32_t runs = 0, blocks = 0;
  uint32_t tokens_max = 0;  // that a row of decode attention sees, at most
  uint32_t full_pages = 0, seal_pages = 0;
  uint32_t groups = 1;             // bit i: group i has rows
  uint32_t wanted = 0, drawn = 0;  // the drawn ones come first

  uint32_t rows() const { return generated + prompt; }
  bool operator==(const StepForm&) const = default;
};

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
  // The next step's inputs are to be written while the last one's may still be copied. REQUIRES:
  // those of the one before it are.
  void FlipInputs();
  uint32_t query_group() const { return shape_.group; }
  uint32_t table_pages() const { return table_pages_; }
  uint32_t open_pages() const { return open_pages_; }
  uint32_t raw_pages() const { return raw_pages_; }
  // Prompt rows go through decode attention where no kernel of prompt rows reads their pages.
  bool prompt_decodes() const { return prompt_decodes_; }

  // Whether the cascade reads the longest sequence. Errors: kUnsupported.
  Status CheckLongestCascade() const { return CheckCascade(shape_, table_pages_); }

  // Copies what the launches of a form read.
  Status UploadInputs(const StepForm& form) const;
  // Embedding, layers, logits of the wanted rows, tokens of the drawn ones. `selectors`: of the
  // groups from 1 on.
  Status LaunchAll(const StepForm& form, const std::vector<DeviceSelector>& selectors);
  // Logits of up to logit_rows() more rows, whose places stand in inputs().wanted from `first` on.
  Status LaunchLogits(uint32_t first, uint32_t count, const Array<float>& to);
  static constexpr uint32_t logit_rows() { return 64; }

  // What a step leaves, in memory of the device.
  const Array<float>& x() const { return x_; }               // [R][dim]
  const Array<float>& logits() const { return logits_; }     // [L][vocab]
  const Array<float>& scoring() const { return scoring_; }   // [logit_rows()][vocab]
  const Array<uint32_t>& finite() const { return finite_; }  // [R]
  const Array<int32_t>& tokens() const { return drawn_; }    // [L]
  const Array<float>& tops() const { return tops_; }         // [L] the largest logits of those
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
  uint32_t table_pages_ = 0, open_pages_ = 0, raw_pages_ = 0;

  Arena<DeviceMemory> arena_;
  Arena<PinnedMemory> pinned_;
  StepInputs inputs_;
  std::vector<std::function<void()>> flips_;  // of each of them
  Array<float> x_{}, qkv_{}, q_{}, o_{}, a_{};
  Array<float> floats_{}, code_scales_{}, half_scales_{};
  Array<uint32_t> codes_{}, code_sums_{};
  Array<F16> halves_{};
  Array<float> partials_{}, head_scores_{}, cascade_logits_{};
  Array<uint8_t> cascade_reads_{};
  Array<uint32_t> arrived_{}, lists_{}, list_tokens_{}, failed_{};
  Array<uint16_t> kept_choices_{};  // [layers][places][KV heads][table_pages]
  Array<float> logits_{}, scoring_{}, weights_{}, sums_{};
  Array<uint32_t> finite_{};
  Array<int32_t> drawn_{};
  Array<float> tops_{};
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_STEP_H_
