#include "base/buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <utility>

#include "base/checked.h"

namespace tinyserve {

constexpr uint64_t kHugePage = 2 << 20;

Buffer::Buffer(Buffer&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapped_(std::exchange(other.mapped_, 0)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

Result<Buffer> Buffer::Allocate(uint64_t bytes, bool huge) {
  const Checked padded = Checked(bytes).RoundUp(4096) + (huge ? 2 * kHugePage : 4096);
  void* mapping = padded.AtMost(UINT64_MAX / 4)
                      ? mmap(nullptr, padded.value(), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                      : MAP_FAILED;
  if (mapping == MAP_FAILED) {
    return Status(Code::kOutOfMemory, fmt::format("cannot get {} bytes of memory", bytes));
  }
  Buffer buffer;
  buffer.mapping_ = mapping;
  buffer.mapped_ = padded.value();
  buffer.size_ = bytes;
  const uintptr_t align = huge ? kHugePage : 64;
  buffer.data_ = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(mapping) + align - 1) /
                                            align * align);
  if (huge) madvise(mapping, buffer.mapped_, MADV_HUGEPAGE);
  return buffer;
}

}  // namespace tinyserve
