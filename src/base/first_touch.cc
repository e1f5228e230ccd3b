#include "base/first_touch.h"

#include <sys/mman.h>

#include <algorithm>

namespace tinyserve {
namespace {

constexpr uint64_t kSystemPage = 4096, kHugePage = 2 << 20;

}  // namespace

void FirstTouch::Add(uint8_t* data, uint64_t bytes) {
  while (bytes > 0) {
    const uint64_t piece =
        std::min(bytes, kHugePage - reinterpret_cast<uintptr_t>(data) % kHugePage);
    pieces_.push_back({.data = data, .bytes = piece});
    data += piece;
    bytes -= piece;
  }
}

bool FirstTouch::Advance(ThreadPool* threads) {
  if (next_ == pieces_.size()) return false;
  const auto count =
      static_cast<uint32_t>(std::min<size_t>(pieces_.size() - next_, threads->threads()));
  threads->For(count, [this](uint32_t i, uint32_t) {
    const Piece& piece = pieces_[next_ + i];
    const uint64_t before = reinterpret_cast<uintptr_t>(piece.data) % kSystemPage;
    // What fails fails, or not, when the memory is used.
    madvise(piece.data - before, before + piece.bytes, MADV_POPULATE_WRITE);
  });
  next_ += count;
  return true;
}

}  // namespace tinyserve
