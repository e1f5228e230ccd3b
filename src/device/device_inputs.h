// What the launches of a step read that changes from step to step: written by the host, copied to
// the device in one piece, at the same places for steps of the same form, so that launches can be
// recorded for a form and replayed.
#ifndef TINYSERVE_DEVICE_DEVICE_INPUTS_H_
#define TINYSERVE_DEVICE_DEVICE_INPUTS_H_

#include <cstdint>
#include <memory>

#include "device/device_arena.h"
#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/attention_sparse.h"
#include "kernels/cuda/sample.h"
#include "tinyserve/status.h"

namespace tinyserve::cuda {

// Selectors that one executor has at most; group 0 of a step's rows reads everything.
constexpr uint32_t kDeviceSelectorsMax = 8;
constexpr uint32_t kReadGroups = kDeviceSelectorsMax + 1;

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

// How much there can be of everything.
struct InputSizes {
  uint32_t rows, sequences, logits;
  uint32_t draws;  // rows that the device draws after
  uint32_t group;  // query heads of a KV head
  uint32_t pairs;  // of RoPE
  bool learns_positions;
  uint32_t table_pages;
  uint32_t open_pages, raw_pages;  // 0: pages are not coded
  bool keeps_choices;
  uint32_t mask_words;  // of a vocabulary
};

// An array that the host writes and a step reads. `device`: of the step that was copied last.
template <class T>
struct Upload {
  Array<T> host, device;
  Array<const T> part(uint64_t first, uint64_t count) const { return {device.data + first, count}; }
};

// Plain memory.
class HostMemory {
 public:
  static Result<HostMemory> Allocate(uint64_t bytes);
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(bytes_.get());
  }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
};

// R rows, S sequences, L rows whose logits are computed, D of them whose token is drawn.
struct StepInputs {
  // Memory for the largest step. `arena`: of the device, to be allocated by the caller. Errors:
  // kOutOfMemory, those of the device.
  Status Allocate(const InputSizes& sizes, Arena<DeviceMemory>* arena);
  // Copies what launches of that form read. From then on all can be written anew: at most two
  // steps' copies are under way at a time. Errors: those of the device.
  Status Copy(const StepForm& form, const DeviceStream& stream);

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
  Upload<uint32_t> wanted;   // [L] rows whose logits are computed
  Upload<DrawScale> scales;  // [D], as the others
  Upload<DrawPenalties> penalties;
  Upload<DrawLists> lists;
  Upload<DrawSeed> seeds;
  // Of edits and masks: not all that there is room for is copied, but `words_used`. It comes last,
  // so that nothing's place depends on it.
  Upload<uint32_t> words;
  uint32_t words_used = 0;

 private:
  // visit(upload, count) of all that a form's launches read, but words.
  template <class Visit>
  void Each(const StepForm& form, const Visit& visit);

  InputSizes sizes_{};
  Arena<HostMemory> host_;
  Arena<PinnedMemory> pinned_;
  Array<uint8_t> packed_[2] = {};  // the copy of step i comes from i % 2
  uint64_t copies_ = 0;
  Array<uint8_t> device_{};
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_INPUTS_H_
