// Blocks: the unit of allocation and reference counting. Bookkeeping only; kv_cache.h owns the
// bytes.
#ifndef TINYSERVE_KV_BLOCK_POOL_H_
#define TINYSERVE_KV_BLOCK_POOL_H_

#include <cstdint>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// A fixed number of blocks with counted references. A block is
//
//   free --Allocate--> open --Seal--> sealed --last Unref--> free
//                        <---Unseal---
//
// A kept block whose only reference is the one that keeps it is idle.
// Open blocks are written by one sequence; sealed ones are immutable and may be shared. Not
// thread-safe: the engine thread owns it.
class BlockPool {
 public:
  // `run_blocks`: how many free blocks a sequence is given room for where it begins to take some
  // (see Allocate); a power of two.
  explicit BlockPool(uint32_t blocks, uint32_t run_blocks = 1);

  uint32_t total() const { return static_cast<uint32_t>(refs_.size()); }
  uint32_t free() const { return free_; }
  // Nobody's but kept: free on demand.
  uint32_t idle() const { return idle_; }
  uint32_t available() const { return free_ + idle_; }
  uint32_t used() const { return total() - available(); }
  uint32_t used_max() const { return used_max_; }

  // A free block: the one after `previous` if that is free, so that a sequence's blocks stream;
  // else the first of the next run_blocks, at a multiple of them, that are all free, so that the
  // blocks of sequences that grow together do not lie in turns; else the first that is free.
  // UINT32_MAX when none is. The new block is open with one reference.
  uint32_t Allocate(uint32_t previous);
  void Ref(uint32_t block);    // REQUIRES: sealed
  void Unref(uint32_t block);  // frees it with the last reference
  // Adds a reference that keeps a block for later use and makes no use of it now. REQUIRES: sealed,
  // not kept.
  void Keep(uint32_t block);
  void Unkeep(uint32_t block);  // gives that reference back
  void Seal(uint32_t block);    // REQUIRES: open
  void Unseal(uint32_t block);  // REQUIRES: sealed, one reference
  bool sealed(uint32_t block) const { return sealed_[block]; }
  bool kept(uint32_t block) const { return kept_[block]; }
  uint32_t refs(uint32_t block) const { return refs_[block]; }

 private:
  uint32_t FreeRun(uint32_t first) const;

  uint32_t run_blocks_;
  std::vector<uint32_t> refs_;  // 0: free
  std::vector<bool> sealed_, kept_;
  uint32_t free_, idle_ = 0;
  uint32_t used_max_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_BLOCK_POOL_H_
