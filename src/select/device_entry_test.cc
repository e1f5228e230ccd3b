#include "select/device_entry.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace tinyserve {
namespace {

constexpr char kPtx[] = "// made by hand\n.version 9.0\n";

const tinyserve_selector_v2 kTable = {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
                                      .struct_size = sizeof(tinyserve_selector_v2),
                                      .name = "mine",
                                      .config_schema = "",
                                      .needs = TINYSERVE_NEEDS_BOX};

tinyserve_selector_device_v1 Entry() {
  return {.abi_version = TINYSERVE_SELECTOR_DEVICE_ABI_VERSION,
          .struct_size = sizeof(tinyserve_selector_device_v1),
          .image = kPtx,
          .image_bytes = sizeof kPtx,
          .kernel = "score",
          .block_threads = 128,
          .block_pages = 16,
          .shared_bytes = 0,
          .parameters = nullptr};
}

std::string MessageOf(const tinyserve_selector_device_v1& entry) {
  return CheckDeviceEntry(&entry, kTable).message();
}

TEST(CheckDeviceEntry, OtherVersionsAndTruncatedEntriesAreRefused) {
  EXPECT_EQ(MessageOf(Entry()), "");
  EXPECT_EQ(CheckDeviceEntry(nullptr, kTable).message(), "the entry is null");
  // Only what the entry has: reading on would leave it (the address sanitizer sees that).
  struct {
    uint32_t abi_version, struct_size;
  } header{.abi_version = 0, .struct_size = 8};
  const auto* entry = reinterpret_cast<const tinyserve_selector_device_v1*>(&header);
  EXPECT_EQ(CheckDeviceEntry(entry, kTable).message(), "abi_version is 0: 1 is needed");
  header.abi_version = 1;
  EXPECT_EQ(CheckDeviceEntry(entry, kTable).message().find("struct_size is 8: version 1 has "), 0u);
}

TEST(CheckDeviceEntry, NamesTheFieldThatIsWrong) {
  tinyserve_selector_device_v1 entry = Entry();
  entry.kernel = "";
  EXPECT_EQ(MessageOf(entry), "kernel is missing");
  for (const uint32_t threads : {0u, 33u, 1056u}) {
    entry = Entry();
    entry.block_threads = threads;
    EXPECT_EQ(MessageOf(entry), "block_threads is " + std::to_string(threads) +
                                    ": allowed are multiples of 32 up to 1024");
  }
  entry = Entry();
  entry.block_pages = 0;
  EXPECT_EQ(MessageOf(entry), "block_pages is 0: at least 1 is needed");
  entry = Entry();
  entry.shared_bytes = 50000;
  EXPECT_EQ(MessageOf(entry), "shared_bytes is 50000: at most 49152 are allowed");
  entry = Entry();
  entry.image = nullptr;
  EXPECT_EQ(MessageOf(entry), "image is missing");
}

TEST(CheckDeviceEntry, GoesWithSelectorsThatKeepNothingOfTheirOwn) {
  const tinyserve_selector_device_v1 entry = Entry();
  tinyserve_selector_v2 table = kTable;
  table.observe = [](void*, const tinyserve_observe_in*) { return 0; };
  EXPECT_NE(CheckDeviceEntry(&entry, table).message(), "");
  table = kTable;
  table.sizes = [](const tinyserve_shape*, const char*, tinyserve_sizes*, tinyserve_error*) {
    return 0;
  };
  EXPECT_NE(CheckDeviceEntry(&entry, table).message(), "");
  table = kTable;
  table.needs = 0;
  EXPECT_NE(CheckDeviceEntry(&entry, table).message(), "");
}

TEST(CheckDeviceEntry, ImagesMustBeWhole) {
  const auto message_of = [](const std::vector<uint8_t>& image, uint64_t bytes) {
    tinyserve_selector_device_v1 entry = Entry();
    entry.image = image.data();
    entry.image_bytes = bytes;
    return MessageOf(entry);
  };
  // PTX without its zero byte, and what is nothing at all.
  const std::vector<uint8_t> ptx(kPtx, kPtx + sizeof kPtx);
  EXPECT_EQ(message_of(ptx, ptx.size() - 1), "image is PTX without a zero byte at its end");
  EXPECT_EQ(message_of(ptx, 5), "image is no fatbin, cubin or PTX");
  EXPECT_EQ(message_of(ptx, 0), "image is no fatbin, cubin or PTX");
  // A fatbin: a header of 16 bytes and 48 more.
  std::vector<uint8_t> fatbin(64);
  const uint32_t magic = 0xba55ed50;
  const uint16_t version_and_header[2] = {1, 16};
  uint64_t more = 48;
  std::memcpy(fatbin.data(), &magic, 4);
  std::memcpy(fatbin.data() + 4, version_and_header, 4);
  std::memcpy(fatbin.data() + 8, &more, 8);
  EXPECT_EQ(message_of(fatbin, 64), "");
  EXPECT_EQ(message_of(fatbin, 63),
            "image is cut off: image_bytes is 63, and its header tells of 64");
  more = UINT64_MAX;
  std::memcpy(fatbin.data() + 8, &more, 8);
  EXPECT_EQ(message_of(fatbin, 64),
            "image is cut off: image_bytes is 64, and its header tells of more than there can be");
  // A cubin: a header of 64 bytes, two sections of 64 and a segment of 56 after them.
  std::vector<uint8_t> elf(64 + 2 * 64 + 56);
  std::memcpy(elf.data(),
              "\x7f"
              "ELF",
              4);
  const uint64_t sections_at = 64, segments_at = 192;
  const uint16_t segments[2] = {56, 1}, sections[2] = {64, 2};
  std::memcpy(elf.data() + 32, &segments_at, 8);
  std::memcpy(elf.data() + 40, &sections_at, 8);
  std::memcpy(elf.data() + 54, segments, 4);
  std::memcpy(elf.data() + 58, sections, 4);
  EXPECT_EQ(message_of(elf, elf.size()), "");
  EXPECT_EQ(message_of(elf, elf.size() - 1),
            "image is cut off: image_bytes is 247, and its header tells of 248");
}

}  // namespace
}  // namespace tinyserve
