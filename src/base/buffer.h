// A block of zeroed memory straight from the system. Pages that are never touched cost nothing, so
// buffers may be sized for the worst step without adding to the resident set.
#ifndef TINYSERVE_BASE_BUFFER_H_
#define TINYSERVE_BASE_BUFFER_H_

#include <cstddef>
#include <cstdint>

#include "tinyserve/status.h"

namespace tinyserve {

class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  // At least 64-byte aligned; 2 MiB aligned and backed by huge pages where the system has them when
  // `huge`. Errors: kOutOfMemory.
  static Result<Buffer> Allocate(uint64_t bytes, bool huge = false);

  uint8_t* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  uint64_t size() const { return size_; }

 private:
  void* mapping_ = nullptr;
  uint64_t mapped_ = 0;
  uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_BUFFER_H_
