// Fresh memory that is made resident on a thread beside, before somebody needs it.
#ifndef TINYSERVE_BASE_FIRST_TOUCH_H_
#define TINYSERVE_BASE_FIRST_TOUCH_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

namespace tinyserve {

// Whoever writes to a page of fresh memory first waits until the system has found and cleared one
// (of a virtual machine, until its host has as well). This thread does that in small pieces, and
// only while nobody else wants its core: it has the lowest priority.
//
// Contents do not change, so others may read and write the memory meanwhile. Where the system
// cannot do this (Linux before 5.14), memory becomes resident when it is used, as ever.
class FirstTouch {
 public:
  FirstTouch();
  ~FirstTouch();  // leaves undone what has not begun
  FirstTouch(const FirstTouch&) = delete;
  FirstTouch& operator=(const FirstTouch&) = delete;

  // Makes `bytes` bytes from `data` on resident, after what was asked before; returns at once. The
  // memory is mapped until the destructor has returned.
  void Ask(uint8_t* data, uint64_t bytes);

 private:
  struct Piece {
    uint8_t* data;
    uint64_t bytes;
  };
  void Run();

  std::mutex mutex_;
  std::condition_variable asked_;
  std::deque<Piece> pieces_;  // not begun yet
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_FIRST_TOUCH_H_
