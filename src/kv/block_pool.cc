#include "kv/block_pool.h"

#include <algorithm>

#include "base/check.h"

namespace tinyserve {

BlockPool::BlockPool(uint32_t blocks)
    : refs_(blocks, 0), sealed_(blocks, false), kept_(blocks, false), free_(blocks) {}

uint32_t BlockPool::Allocate(uint32_t previous) {
  if (free_ == 0) return UINT32_MAX;
  uint32_t block = previous < total() ? (previous + 1) % total() : 0;
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
