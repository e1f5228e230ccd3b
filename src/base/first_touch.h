// Fresh memory that is made resident bit by bit, before somebody needs it.
#ifndef TINYSERVE_BASE_FIRST_TOUCH_H_
#define TINYSERVE_BASE_FIRST_TOUCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace tinyserve {

// Whoever writes to a page of fresh memory first waits until the system has found and cleared one;
// of a virtual machine, until its host has as well: 4 to 5 ms for a huge page. A step that finds a
// whole extent of the KV pool fresh waits three times; so memory is made resident a huge page for
// each thread at a time, all at once, between the steps before.
//
// Not on a thread beside, whatever its priority: where all cores compute, it gets one for a tick of
// the scheduler, as long as a page takes, and for several in one step.
//
// Contents do not change. Where the system cannot do this (Linux before 5.14), memory becomes
// resident when it is used, as ever.
class FirstTouch {
 public:
  FirstTouch() { pieces_.reserve(kPiecesReserved); }

  // Forgets what is left to do.
  void Clear() { next_ = 0, pieces_.clear(); }
  // `bytes` bytes from `data` on are to become resident, after what was added before. They are
  // mapped until that has been done or forgotten.
  void Add(uint8_t* data, uint64_t bytes);
  // Makes a piece for each thread resident. False: nothing was left.
  bool Advance(ThreadPool* threads);

 private:
  static constexpr size_t kPiecesReserved = 32;  // so many are added without an allocation

  struct Piece {  // within one huge page
    uint8_t* data;
    uint64_t bytes;
  };

  std::vector<Piece> pieces_;
  size_t next_ = 0;  // of them
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_FIRST_TOUCH_H_
