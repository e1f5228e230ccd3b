#include "kv/block_pool.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace tinyserve {

BlockPool::BlockPool(uint32_t blocks, uint32_t run_blocks)
    : run_blocks_(run_blocks),
      refs_(blocks, 0),
      sealed_(blocks, false),
      kept_(blocks, false),
      free_(blocks) {
  TS_CHECK(std::has_single_bit(run_blocks));
}

// The first run that is all free and begins at `first` or later, else at the pool's beginning.
// UINT32_MAX: there is none.
uint32_t BlockPool::FreeRun(uint32_t first) const {
  const uint32_t runs = total() / run_blocks_;
  const uint32_t from = (first + run_blocks_ - 1) / run_blocks_;
  for (uint32_t i = 0; i < runs; ++i) {
    const auto run = refs_.begin() + int64_t{(from + i) % runs} * run_blocks_;
    if (std::all_of(run, run + run_blocks_, [](uint32_t refs) { return refs == 0; }))
      return static_cast<uint32_t>(run - refs_.begin());
  }
  return UINT32_MAX;
}

uint32_t BlockPool::Allocate(uint32_t previous) {
  if (free_ == 0) return UINT32_MAX;
  const bool follows = previous < total();
  uint32_t block = follows ? (previous + 1) % total() : 0;
  if (!follows || refs_[block] != 0) {
    const uint32_t run = FreeRun(block);
    if (run != UINT32_MAX) block = run;
  }
  while (refs_[block] != 0) block = (block + 1) % total();
  refs_[block] = 1;
  sealed_[block] = false;
  --free_;
  used_max_ = std::max(used_max_, used());
  return block;
}

void BlockPool::Ref(uint32_t block) {
  TS_CHECK(block < total() && refs_[block] > 0 && sealed_[block]);
  if (kept_[block] && refs_[block] == 1) --idle_;
  ++refs_[block];
  used_max_ = std::max(used_max_, used());
}

void BlockPool::Unref(uint32_t block) {
  TS_CHECK(block < total() && refs_[block] > (kept_[block] ? 1 : 0));
  if (--refs_[block] == 0) ++free_;
  if (kept_[block] && refs_[block] == 1) ++idle_;
}

void BlockPool::Keep(uint32_t block) {
  TS_CHECK(block < total() && refs_[block] > 0 && sealed_[block] && !kept_[block]);
  ++refs_[block];
  kept_[block] = true;
}

void BlockPool::Unkeep(uint32_t block) {
  TS_CHECK(block < total() && kept_[block]);
  if (refs_[block] == 1) --idle_;
  kept_[block] = false;
  Unref(block);
}

void BlockPool::Seal(uint32_t block) {
  TS_CHECK(block < total() && refs_[block] > 0 && !sealed_[block]);
  sealed_[block] = true;
}

void BlockPool::Unseal(uint32_t block) {
  TS_CHECK(block < total() && refs_[block] == 1 && sealed_[block]);
  sealed_[block] = false;
}

}  // namespace tinyserve
