#include "select/device_entry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "base/checked.h"
#include "select/registry.h"

namespace tinyserve {
namespace {

Status Bad(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

template <class T>
T ReadAt(std::string_view image, size_t at) {
  T value;
  std::memcpy(&value, image.data() + at, sizeof value);
  return value;
}

// Bytes that a fatbin has by its header: magic, version, the header's own size, what follows it.
constexpr uint32_t kFatbinMagic = 0xba55ed50;
constexpr size_t kFatbinHeader = 16;
Checked FatbinBytes(std::string_view image) {
  return Checked(ReadAt<uint16_t>(image, 6)) + Checked(ReadAt<uint64_t>(image, 8));
}

// Bytes of an ELF file of 64 bits (a cubin) up to the end of its tables of sections and segments.
constexpr char kElfMagic[] =
    "\x7f"
    "ELF";
constexpr size_t kElfHeader = 64;
Checked ElfBytes(std::string_view image, bool sections) {
  const uint64_t at = ReadAt<uint64_t>(image, sections ? 40 : 32);
  const uint16_t bytes = ReadAt<uint16_t>(image, sections ? 58 : 54);
  const uint16_t count = ReadAt<uint16_t>(image, sections ? 60 : 56);
  return count == 0 ? Checked(0) : Checked(at) + Checked(bytes) * Checked(count);
}

Status CheckWhole(std::string_view image, Checked wanted) {
  if (wanted.valid() && wanted.value() <= image.size()) return Status();
  return Bad(
      fmt::format("image is cut off: image_bytes is {}, and its header tells of {}", image.size(),
                  wanted.valid() ? std::to_string(wanted.value()) : "more than there can be"));
}

// A runtime that loads an image is not told where it ends.
Status CheckImage(std::string_view image) {
  const auto begins = [&](const void* magic, size_t bytes, size_t header) {
    return image.size() >= header && std::memcmp(image.data(), magic, bytes) == 0;
  };
  if (begins(&kFatbinMagic, sizeof kFatbinMagic, kFatbinHeader))
    return CheckWhole(image, FatbinBytes(image));
  if (begins(kElfMagic, sizeof kElfMagic - 1, kElfHeader)) {
    TS_RETURN_IF_ERROR(CheckWhole(image, ElfBytes(image, true)));
    return CheckWhole(image, ElfBytes(image, false));
  }
  const size_t end = image.find('\0');
  if (image.substr(0, end).find(".version") == std::string_view::npos)
    return Bad("image is no fatbin, cubin or PTX");
  if (end == std::string_view::npos) return Bad("image is PTX without a zero byte at its end");
  return Status();
}

}  // namespace

Status CheckDeviceEntry(const tinyserve_selector_device_v1* entry,
                        const tinyserve_selector_v2& table) {
  if (entry == nullptr) return Bad("the entry is null");
  TS_RETURN_IF_ERROR(CheckPluginVersion(entry->abi_version, entry->struct_size,
                                        TINYSERVE_SELECTOR_DEVICE_ABI_VERSION,
                                        sizeof(tinyserve_selector_device_v1)));
  if (table.fused_id != 0 || table.sizes != nullptr || table.observe != nullptr) {
    return Bad("the selector has a fused_id, sizes or observe, which are not for a device entry");
  }
  if (table.needs == 0) {
    return Bad("the selector needs nothing of a page: box or moments are what a kernel is given");
  }
  if (entry->kernel == nullptr || *entry->kernel == '\0') return Bad("kernel is missing");
  if (entry->block_threads == 0 || entry->block_threads % 32 != 0 || entry->block_threads > 1024) {
    return Bad(fmt::format("block_threads is {}: allowed are multiples of 32 up to 1024",
                           entry->block_threads));
  }
  if (entry->block_pages == 0) return Bad("block_pages is 0: at least 1 is needed");
  constexpr uint32_t kSharedMax = 48 << 10;
  if (entry->shared_bytes > kSharedMax) {
    return Bad(
        fmt::format("shared_bytes is {}: at most {} are allowed", entry->shared_bytes, kSharedMax));
  }
  if (entry->image == nullptr) return Bad("image is missing");
  return CheckImage({static_cast<const char*>(entry->image), entry->image_bytes});
}

}  // namespace tinyserve
