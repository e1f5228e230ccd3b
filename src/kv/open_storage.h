// Raw pages of the tokens that a codec has not coded yet.
#ifndef TINYSERVE_KV_OPEN_STORAGE_H_
#define TINYSERVE_KV_OPEN_STORAGE_H_

#include <cstdint>

#include "kv/block_pool.h"
#include "kv/page_space.h"
#include "page/page.h"
#include "tinyserve/status.h"

namespace tinyserve {

// One layer group's. Few pages, which come and go with every window: each (layer, KV head) has them
// in one piece, and the lowest free one is taken, so that no more memory is touched than was ever
// in use.
class OpenStorage {
 public:
  // No pages: what a codec that codes nothing has.
  OpenStorage() : pool_(0) {}
  // Errors: kOutOfMemory, those of a device.
  static Result<OpenStorage> Create(const KvShape& shape, uint32_t layers, uint32_t pages,
                                    const PageSpace& space);

  const KvShape& shape() const { return shape_; }
  // Of the pages; none is ever sealed.
  const BlockPool& pool() const { return pool_; }
  uint32_t TakePage() { return pool_.Allocate(UINT32_MAX); }
  void GivePage(uint32_t page) { pool_.Unref(page); }
  KvSlab slab(uint32_t layer, uint32_t kv_head) const;

 private:
  KvShape shape_{};
  uint32_t page_bytes_ = 0, v_offset_ = 0;
  BlockPool pool_;
  PageMemory memory_;  // [layer][KV head][page]
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_OPEN_STORAGE_H_
