// For kernels: pages in planes (page/planes.h), and their form for decode attention.
#ifndef TINYSERVE_KERNELS_CUDA_PLANES_FORM_H_
#define TINYSERVE_KERNELS_CUDA_PLANES_FORM_H_

#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/decode_forms.h"
#include "kernels/cuda/simt.h"
#include "page/planes.h"

namespace tinyserve::cuda {

// What sixteen channels of a token's key are coded by.
struct KeyWords {
  uint32_t upper, middle, low[2];
};
// Codes of the channels 4 * i .. 4 * i + 3 of the sixteen, a byte each.
TS_DEVICE uint32_t KeyCodes(const KeyWords& words, uint32_t i) {
  constexpr uint32_t kPairs = 0x03030303u, kHalves = 0x0f0f0f0fu;
  return (words.upper >> 2 * i & kPairs) << 6 | (words.middle >> 2 * i & kPairs) << 4 |
         (words.low[i % 2] >> i / 2 * 4 & kHalves);
}

// A tile is two whole pages, then their spreads. What these stand for is made once a tile, as
// floats: of keys [2 pages][mean, step][kDim], of values [32 tokens].
template <uint32_t kHeadDim>
struct PlanesForm {
  static constexpr uint32_t kDim = kHeadDim;
  static constexpr PlanesLayout kAt = PlanesLayoutOf(kDim);
  static_assert(kAt.channels == kDim && kDim <= kPlanesHeadDimMax);
  static constexpr bool kRows = false;
  static constexpr uint32_t kPageTokens = kPlanesTokens;
  static constexpr uint32_t kKeyChannels = 16, kValueChannels = 8;
  static constexpr uint32_t kTilePages = kTileTokens / kPlanesTokens;
  // A token's share of its page.
  static constexpr uint32_t kKeyRow = kAt.v_at / kPlanesTokens, kValueRow = kDim;
  static_assert(kPlanesTokens * (kKeyRow + kValueRow) == kAt.page_bytes);
  static constexpr uint32_t kSpreadBytes = sizeof(SpreadScales) + kDim;
  static constexpr uint32_t kMetaBytes = (kSpreadBytes + 15) / 16 * 16;
  static constexpr uint32_t kKeyFloats = kTilePages * 2 * kDim;
  static constexpr uint32_t kRangeFloats = kKeyFloats + kTileTokens;

  // Of sixteen channels of a token. `view`: bytes, in which the page begins at `page`.
  template <class View>
  TS_DEVICE static KeyWords Words(const View& view, uint64_t page, uint32_t slot, uint32_t group) {
    const uint64_t row = page + kAt.low_at + slot * kAt.low_bytes;
    const uint64_t upper = page + kAt.upper_at + (group * kPlanesTokens + slot) * 4;
    return {view.template Get<uint32_t>(upper),
            view.template Get<uint32_t>(row + kDim / 2 + group * 4),
            {view.template Get<uint32_t>(row + group * 8),
             view.template Get<uint32_t>(row + group * 8 + 4)}};
  }

  // Begins to copy pages first .. first + pages - 1 of a list.
  template <class List>
  TS_DEVICE static void CopyPages(const Shared<uint8_t>& tile, const PagesOfHead& pages,
                                  const List& list, uint32_t first, uint32_t count) {
    constexpr uint32_t kLines = kAt.page_bytes / 16;
    const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
    for (uint32_t i = ThreadIndex(); i < count * kLines; i += kDecodeThreads) {
      const uint32_t page = i / kLines, line = i % kLines * 16;
      CopyAsync16(tile, page * kAt.page_bytes + line, bytes,
                  ItemAt(pages.slabs, pages.head, list(first + page)) + line);
    }
  }
  TS_DEVICE static void CopyMeta(const Shared<uint8_t>& tile, uint32_t to, const PagesOfHead& pages,
                                 uint32_t page, uint32_t thread, uint32_t threads) {
    const Global<const uint8_t> records(pages.records.bytes, "records");
    for (uint32_t at = thread * 8; at < kSpreadBytes; at += threads * 8) {
      CopyAsync8(tile, to + at, records,
                 ItemAt(pages.records, pages.head, page) + pages.spread_at + at);
    }
  }

  // Makes the floats of a tile's `tokens`, whole pages, whose spreads begin at `meta`.
  TS_DEVICE static void Prepare(const Shared<uint8_t>& tile, const Shared<float>& floats,
                                uint32_t meta, uint32_t tokens) {
    const uint32_t pages = tokens / kPlanesTokens;
    for (uint32_t i = ThreadIndex(); i < pages * kDim; i += kDecodeThreads) {
      const uint32_t page = i / kDim, c = i % kDim, of_page = page * kAt.page_bytes;
      const auto mean = static_cast<int8_t>(tile.Get(meta + page * kMetaBytes + 8 + c));
      const uint32_t distance = tile.Get(of_page + kAt.distances_at + c);
      const float mean_scale = tile.Get<float>(meta + page * kMetaBytes);
      const float unit = tile.Get<float>(of_page + kAt.scales_at + kDistanceAt);
      floats.Set(page * 2 * kDim + c, static_cast<float>(mean) * mean_scale);
      floats.Set((page * 2 + 1) * kDim + c, static_cast<float>(distance) * unit * (1 / kPlanesTop));
    }
    for (uint32_t t = ThreadIndex(); t < tokens; t += kDecodeThreads) {
      const uint32_t at = t / kPlanesTokens * kAt.page_bytes + kAt.scales_at;
      floats.Set(kKeyFloats + t, Float(tile.Get<BF16>(at + 2 * (t % kPlanesTokens))));
    }
  }

  TS_DEVICE static void Keys(const Shared<uint8_t>& tile, const Shared<float>& floats,
                             uint32_t token, uint32_t piece, float (&k)[kKeyChannels]) {
    const uint32_t page = token / kPlanesTokens;
    const KeyWords words = Words(tile, page * kAt.page_bytes, token % kPlanesTokens, piece);
    const uint32_t at = page * 2 * kDim + piece * kKeyChannels;
    TS_UNROLL
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t codes = KeyCodes(words, i);
      const auto mean = floats.Get<Line<float>>(at + 4 * i);
      const auto step = floats.Get<Line<float>>(at + kDim + 4 * i);
      TS_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        const float code = static_cast<float>(codes >> 8 * j & 255) - 128;
        k[4 * i + j] = Fma(code, step.at[j], mean.at[j]);
      }
    }
  }
  TS_DEVICE static void Values(const Shared<uint8_t>& tile, const Shared<float>& floats,
                               uint32_t token, uint32_t piece, float (&v)[kValueChannels]) {
    struct alignas(8) Bytes {
      int8_t at[8];
    };
    const uint32_t page = token / kPlanesTokens, slot = token % kPlanesTokens;
    const auto codes =
        tile.Get<Bytes>(page * kAt.page_bytes + kAt.v_at + slot * kValueRow + piece * 8);
    const float scale = floats.Get(kKeyFloats + token);
    TS_UNROLL
    for (uint32_t i = 0; i < kValueChannels; ++i) v[i] = static_cast<float>(codes.at[i]) * scale;
  }
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PLANES_FORM_H_
