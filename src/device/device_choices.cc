#include "device/device_choices.h"

#include <algorithm>

namespace tinyserve::cuda {

void ChoicesInForce::BeginStep() {
  for (InForce& in_force : of_slot_) in_force.row = kNoRow;
}

// As Choose of select/hierarchical.cc, of which this has the numbers without the pages.
void ChoicesInForce::Next(const DeviceSelector& selector, const Query& query, RowReads* reads,
                          RowChoice* choices, ChoicePlaces* places) {
  InForce& f = of_slot_[query.slot];
  if (f.life != query.life || f.selector != query.selector || f.next_position != query.position) {
    f.life = query.life;
    f.selector = query.selector;
    f.made = false;
  }
  f.next_position = query.position + 1ull;
  if (reads->scored == 0) return;  // there is nothing to choose
  const SelectorBudget& b = selector.spec.budget;
  const uint32_t recent = b.recent - std::min(b.recent, reads->open), forced = b.sink + recent;
  const uint32_t budget = reads->budget - forced, end = reads->pages - recent;
  RowChoice& choice = choices[query.row];
  ChoicePlaces& place = places[query.row];
  if (!f.made || f.made_at / selector.reuse != query.position / selector.reuse) {
    // Pages that become candidates before the next choice are to join this one.
    const uint32_t to_come = (selector.reuse - 1 + query.page_tokens - 1) / query.page_tokens;
    const uint32_t chosen = budget - std::min(to_come, budget / 2);
    // The last choice of a step is kept, for those that follow.
    if (f.row != kNoRow) {
      places[f.row].to = kNoPlace;
    } else {
      f.place ^= 1;
    }
    f.made = true;
    f.made_at = query.position;
    f.end = end;
    f.chosen = chosen;
    f.row = query.row;
    choice = {.source = query.row, .end = end, .chosen = chosen, .read = chosen};
    place = {.from = kNoPlace, .to = kPlaces * query.slot + f.place};
    reads->budget = forced + chosen;
    return;
  }
  // Where the budget has no room for pages that came since, they wait for the next choice.
  const uint32_t kept = std::min(budget, f.chosen), added = std::min(budget - kept, end - f.end);
  choice = {.source = f.row, .end = f.end, .chosen = f.chosen, .read = kept};
  place = {.from = f.row == kNoRow ? kPlaces * query.slot + f.place : kNoPlace, .to = kNoPlace};
  reads->budget = forced + kept + added;
  reads->scored = 0;
}

}  // namespace tinyserve::cuda
