#include "kv/open_storage.h"

#include "base/checked.h"

namespace tinyserve {

Result<OpenStorage> OpenStorage::Create(const KvShape& shape, uint32_t layers, uint32_t pages,
                                        const PageSpace& space) {
  OpenStorage s;
  const PageGeometry page = space.GeometryOf(shape);
  s.shape_ = shape;
  s.page_bytes_ = page.page_bytes;
  s.v_offset_ = page.v_offset;
  s.pool_ = BlockPool(pages);
  const Checked bytes =
      Checked(pages) * Checked(page.page_bytes) * Checked(layers) * Checked(shape.kv_heads);
  if (!bytes.valid()) {
    return Status(Code::kOutOfMemory,
                  "the storage of KV pages that are not coded yet is too large");
  }
  // No huge pages: each (layer, KV head) uses the beginning of its piece.
  TS_ASSIGN_OR_RETURN(s.memory_, space.Allocate(bytes.value(), /*huge=*/false));
  return Result<OpenStorage>(std::move(s));
}

KvSlab OpenStorage::slab(uint32_t layer, uint32_t kv_head) const {
  const uint64_t piece_bytes = uint64_t{pool_.total()} * page_bytes_;
  return {.base = memory_.data + (uint64_t{layer} * shape_.kv_heads + kv_head) * piece_bytes,
          .extent_stride = 0,
          .extent_shift = 31,
          .page_bytes = page_bytes_,
          .v_offset = v_offset_};
}

}  // namespace tinyserve
