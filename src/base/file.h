// File seam: read-only memory maps and whole-file reads.
#ifndef TINYSERVE_BASE_FILE_H_
#define TINYSERVE_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "tinyserve/status.h"

namespace tinyserve {

// A read-only private mapping of a whole file. Movable, unmapped on destruction.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Errors: kNotFound, kIo (named path and errno text), kInvalidArgument for a directory or special
  // file.
  static Result<MappedFile> Open(const std::string& path);

  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  // Tells the system that [offset, offset + length) will not be read again soon, so that its pages
  // leave this process's resident set. Reading it again is still correct, only slower.
  void Release(uint64_t offset, uint64_t length) const;

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// The whole content of a file of at most `max_bytes`.
Result<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

}  // namespace tinyserve

#endif  // TINYSERVE_BASE_FILE_H_
