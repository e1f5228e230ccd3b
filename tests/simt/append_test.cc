// Rotary positions and new keys and values on the emulated device against `ref`.
#include "kernels/cuda/append.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/tables.h"
#include "kernels/testing.h"
#include "tests/simt/device_testing.h"
#include "tests/simt/emulator.h"

namespace tinyserve::cuda {
namespace {

using testing::SameBits;

constexpr uint32_t kExtentShift = 1, kTablePages = 3, kTables = 2, kPages = 8;

struct Wanted {
  KvType type;
  uint32_t heads, kv_heads, head_dim, rotary_dim, page_tokens;
  bool interleaved;
};

// Rows of two sequences, one of them in a chunk of three; and a row that is not in use.
struct Layer {
  Wanted wanted;
  std::vector<uint32_t> positions = {5, 0, kNoPosition, 6, 7}, table_of = {1, 0, 0, 1, 1};
  std::vector<uint32_t> tables = {3, 0, 6, 5, 2, 7};
  std::vector<float> qkv, cos_sin, q;
  KvShape shape;
  KvSlab slab{};
  uint64_t head_stride;
  std::vector<uint8_t> bytes;

  explicit Layer(const Wanted& w) : wanted(w), shape{w.type, 1, w.head_dim, w.page_tokens} {
    qkv = RandomRows(rows() * Width(), w.head_dim);
    cos_sin.resize(uint64_t{rows()} * w.rotary_dim);
    for (uint32_t i = 0; i < cos_sin.size(); i += 2) {
      cos_sin[i] = std::cos(0.37f * static_cast<float>(i));
      cos_sin[i + 1] = std::sin(0.37f * static_cast<float>(i));
    }
    q.assign(uint64_t{rows()} * w.heads * w.head_dim, NAN);
    uint32_t k_bytes, v_bytes;
    RefKernels()->page_bytes(&shape, &k_bytes, &v_bytes);
    slab = {.base = nullptr,
            .extent_stride = 0,
            .extent_shift = kExtentShift,
            .page_bytes = k_bytes + v_bytes,
            .v_offset = k_bytes};
    head_stride = uint64_t{slab.page_bytes} << kExtentShift;
    slab.extent_stride = head_stride * w.kv_heads;
    bytes.assign(slab.extent_stride * (kPages >> kExtentShift), 0xff);
  }
  uint32_t rows() const { return static_cast<uint32_t>(positions.size()); }
  uint64_t Width() const { return uint64_t{wanted.heads + 2 * wanted.kv_heads} * wanted.head_dim; }

  Status Run() {
    return AppendRotated({.rows = rows(),
                          .heads = wanted.heads,
                          .kv_heads = wanted.kv_heads,
                          .head_dim = wanted.head_dim,
                          .rotary_dim = wanted.rotary_dim,
                          .interleaved = wanted.interleaved,
                          .qkv = ArrayOf(std::as_const(qkv)),
                          .cos_sin = ArrayOf(std::as_const(cos_sin)),
                          .positions = ArrayOf(std::as_const(positions)),
                          .table_of = ArrayOf(std::as_const(table_of)),
                          .table_pages = kTablePages,
                          .tables = ArrayOf(std::as_const(tables)),
                          .q = ArrayOf(q),
                          .type = wanted.type,
                          .page_tokens = wanted.page_tokens,
                          .pages = {{bytes.data(), bytes.size()},
                                    head_stride,
                                    slab.extent_stride,
                                    kExtentShift,
                                    slab.page_bytes},
                          .v_offset = slab.v_offset},
                         nullptr);
  }

  // What `ref` makes of the same rows: queries into `q_out`, pages into `pages_out`.
  void Reference(std::vector<float>& q_out, std::vector<uint8_t>& pages_out) {
    for (uint32_t r = 0; r < rows(); ++r) {
      if (positions[r] == kNoPosition) continue;
      std::vector<float> row(qkv.begin() + static_cast<ptrdiff_t>(r * Width()),
                             qkv.begin() + static_cast<ptrdiff_t>((r + 1) * Width()));
      RefKernels()->rope(row.data(), wanted.heads + wanted.kv_heads, wanted.head_dim,
                         wanted.rotary_dim, wanted.interleaved,
                         cos_sin.data() + uint64_t{r} * wanted.rotary_dim);
      std::copy_n(
          row.begin(), wanted.heads * wanted.head_dim,
          q_out.begin() + static_cast<ptrdiff_t>(uint64_t{r} * wanted.heads * wanted.head_dim));
      for (uint32_t h = 0; h < wanted.kv_heads; ++h) {
        KvSlab of_head = slab;
        of_head.base = pages_out.data() + h * head_stride;
        const AppendArgs args{
            .shape = shape,
            .slab = of_head,
            .pages = tables.data() + uint64_t{table_of[r]} * kTablePages,
            .first_slot = positions[r],
            .tokens = 1,
            .k = row.data() + uint64_t{wanted.heads + h} * wanted.head_dim,
            .v = row.data() + uint64_t{wanted.heads + wanted.kv_heads + h} * wanted.head_dim,
            .stride = wanted.head_dim};
        RefKernels()->append(&args);
      }
    }
  }
};

// Types, pairs, whole and partial rotation and none, head sizes, groups and pages, each pair of
// them once.
constexpr Wanted kWanted[] = {
    {KvType::kF16, 4, 2, 64, 64, 4, false},   {KvType::kF16, 3, 3, 80, 32, 8, true},
    {KvType::kBF16, 8, 1, 128, 128, 4, true}, {KvType::kBF16, 6, 2, 96, 48, 16, false},
    {KvType::kF32, 2, 1, 96, 96, 8, true},    {KvType::kF32, 3, 3, 64, 0, 4, false},
    {KvType::kF16, 2, 2, 128, 0, 16, false},  {KvType::kBF16, 2, 2, 64, 0, 8, false}};

TEST(DeviceAppend, WritesAndRotatesAsRefDoesBitForBit) {
  uint64_t seed = 1;
  for (const Wanted& w : kWanted) {
    SCOPED_TRACE(std::to_string(static_cast<int>(w.type)) + ", head size " +
                 std::to_string(w.head_dim) + ", pages of " + std::to_string(w.page_tokens));
    simt::SetSeed(seed++);
    Layer layer(w);
    std::vector<float> q = layer.q;
    std::vector<uint8_t> pages = layer.bytes;
    layer.Reference(q, pages);
    const Status status = layer.Run();
    ASSERT_TRUE(status.ok()) << status.message();
    // What no row was to write is as it was, too.
    EXPECT_TRUE(layer.bytes == pages);
    EXPECT_TRUE(SameBits(layer.q, q));
    ASSERT_NE(std::count(pages.begin(), pages.end(), 0xff), static_cast<ptrdiff_t>(pages.size()));
  }
}

TEST(DeviceAppend, CodedPagesAreRefused) {
  Layer layer(kWanted[0]);
  layer.wanted.type = KvType::kInt8;
  EXPECT_EQ(layer.Run().code(), Code::kUnsupported);
}

#ifdef TINYSERVE_SIMT
// A table that names a page outside of the layer's memory.
TEST(DeviceAppend, APageOutsideIsFoundByTheEmulation) {
  Layer layer(kWanted[0]);
  layer.tables[4] = 4000;
  const Status status = layer.Run();
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("pages"), std::string::npos) << status.message();
}
#endif

}  // namespace
}  // namespace tinyserve::cuda
