// Which choices of pages are in force, of sequences whose selector keeps one for some positions
// (`hierarchical`): all of it follows from positions, so the host knows it while the choices
// themselves stay on the device.
#ifndef TINYSERVE_DEVICE_DEVICE_CHOICES_H_
#define TINYSERVE_DEVICE_DEVICE_CHOICES_H_

#include <cstdint>
#include <vector>

#include "device/device_selector.h"
#include "kernels/cuda/attention_sparse.h"
#include "kv/kv_cache.h"

namespace tinyserve::cuda {

// What a row of decode attention reads; `budget` and the rest of those that select.
struct RowReads {
  uint32_t pages, open;  // in blocks, or raw ones beside coded ones
  uint32_t budget;       // of `pages`, the forced ones too; of the cascade: candidates
  uint32_t scored;       // pages whose records are read
  bool selects;
  // Of the cascade, in layers that are not wide: tokens that are read in full, and those that give
  // their values, at most; not yet held to what there is.
  uint32_t full_tokens, value_tokens;
};

// Each sequence has two places for its choices, of which a step reads one and writes the other:
// rows of one step run beside each other.
class ChoicesInForce {
 public:
  static constexpr uint32_t kPlaces = 2;  // of a slot: places are kPlaces * slot and the next

  explicit ChoicesInForce(uint32_t slots) : of_slot_(slots) {}

  // Rows of a step are numbered anew.
  void BeginStep();
  // The next query of a sequence chooses.
  void Forget(SequenceSlot slot) { of_slot_[slot].next_position = 0; }

  struct Query {
    SequenceSlot slot;
    uint32_t life;      // of the slot's states (KvCache::states_life)
    uint32_t selector;  // its number
    uint32_t position;
    uint32_t page_tokens;
    uint32_t row;  // of the step
  };
  // A query that selects, those of a sequence in order of position; each is to be run, once.
  // `reads`: as its budget alone has it, then as it is; the row's entries of `choices` and `places`
  // are set where any of its pages are chosen by scores, and places of rows before it may be
  // withdrawn.
  void Next(const DeviceSelector& selector, const Query& query, RowReads* reads, RowChoice* choices,
            ChoicePlaces* places);

 private:
  struct InForce {
    uint32_t life = 0;
    uint32_t selector = 0;
    uint64_t next_position = 0;  // of the query that finds it; 0: none does
    bool made = false;
    uint32_t made_at = 0;
    uint32_t end = 0, chosen = 0;  // candidates ended before this page; so many were chosen
    uint32_t row = kNoRow;         // that made it, of this step
    uint32_t place = 0;            // of the two, where it is after this step
  };
  std::vector<InForce> of_slot_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_DEVICE_DEVICE_CHOICES_H_
