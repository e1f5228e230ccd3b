// For kernels: the forms in which pages hold tokens, as tiles of 32 tokens in shared memory.
//
// A tile is 32 rows of keys, 32 of values, and what else its pages have (kMetaBytes a page). A form
// says how long rows are in a page (kKeyBytes) and in the tile (kKeyRow: so that what the lanes of
// a phase read falls on different banks), and decodes a piece of one: kKeyChannels or
// kValueChannels neighbouring channels.
#ifndef TINYSERVE_KERNELS_CUDA_DECODE_FORMS_H_
#define TINYSERVE_KERNELS_CUDA_DECODE_FORMS_H_

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/coded_pages.h"
#include "kernels/cuda/paged.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kDecodeThreads = 128;
constexpr uint32_t kTileTokens = 32;

// Where the pages of a KV head lie, and the records of coded ones.
struct PagesOfHead {
  Slabs<const uint8_t> slabs;
  uint32_t v_offset, page_shift, head;
  Slabs<const uint8_t> records;
  uint32_t spread_at;  // bytes from a record's start to its range or spread
};

// Of floats, which have no records to be read by. page_shift: log2 of a page's tokens.
inline PagesOfHead FloatPages(const DevicePages& pages, uint32_t page_shift) {
  return {.slabs = pages.slabs,
          .v_offset = pages.v_offset,
          .page_shift = page_shift,
          .head = 0,
          .records = {},
          .spread_at = 0};
}

template <class Byte>
TS_DEVICE uint64_t ItemAt(const Slabs<Byte>& slabs, uint32_t head, uint32_t index) {
  const uint32_t within = index & ((1u << slabs.extent_shift) - 1);
  return head * slabs.head_stride + (index >> slabs.extent_shift) * slabs.extent_stride +
         uint64_t{within} * slabs.item_bytes;
}

// f32, f16, bf16: a piece is 16 bytes. Rows begin half the banks apart: the eight lanes of a phase
// read four pieces of each of two tokens.
template <class T, uint32_t kHeadDim>
struct FloatForm {
  static constexpr uint32_t kDim = kHeadDim;
  static constexpr uint32_t kKeyChannels = 16 / sizeof(T), kValueChannels = kKeyChannels;
  static constexpr uint32_t kKeyBytes = kDim * sizeof(T), kValueBytes = kKeyBytes;
  static constexpr uint32_t kKeyRow = (kKeyBytes + 63) / 128 * 128 + 64, kValueRow = kKeyRow;
  static constexpr bool kRows = true;  // else pages are copied whole
  static constexpr uint32_t kMetaBytes = 0, kRangeFloats = 0;
  static constexpr uint32_t kTilePages = 0;  // whose meta a tile has
  static_assert(kDim % kKeyChannels == 0 && kKeyRow >= kKeyBytes && kKeyRow % 128 == 64);

  TS_DEVICE static void Keys(const Shared<uint8_t>& tile, const Shared<float>&, uint32_t token,
                             uint32_t piece, float (&k)[kKeyChannels]) {
    Load(tile, token * kKeyRow + piece * 16, k);
  }
  TS_DEVICE static void Values(const Shared<uint8_t>& tile, const Shared<float>&, uint32_t token,
                               uint32_t piece, float (&v)[kValueChannels]) {
    Load(tile, kTileTokens * kKeyRow + token * kValueRow + piece * 16, v);
  }

 private:
  TS_DEVICE static void Load(const Shared<uint8_t>& tile, uint32_t at, float (&x)[kKeyChannels]) {
    const auto line = tile.Get<Line<T>>(at);
    TS_UNROLL
    for (uint32_t i = 0; i < kKeyChannels; ++i) x[i] = Float(line.at[i]);
  }
};

// kBytes neighbouring codes of 8 bits, or twice as many of 4, as floats.
template <uint32_t kBits, uint32_t kChannels>
TS_DEVICE void Codes(const Shared<uint8_t>& tile, uint32_t at, float (&codes)[kChannels]) {
  constexpr uint32_t kWords = kChannels * kBits / 32, kPerWord = 32 / kBits;
  struct alignas(4 * kWords) Words {
    uint32_t at[kWords];
  };
  const auto words = tile.Get<Words>(at);
  TS_UNROLL
  for (uint32_t i = 0; i < kChannels; ++i) {
    const uint32_t code = words.at[i / kPerWord] >> i % kPerWord * kBits & ((1u << kBits) - 1);
    codes[i] = static_cast<float>(code);
  }
}

// Codes within ranges, of pages of 16 tokens. What a page's ranges stand for is made once a tile,
// as floats: of keys [2 pages][middle, step][kDim], of values [32 tokens][kGroups][middle, step].
template <uint32_t kKeyBits, uint32_t kValueBits, uint32_t kHeadDim>
struct RangesForm {
  static constexpr uint32_t kDim = kHeadDim;
  static constexpr CodedPageLayout kAt = CodedPageLayoutOf(kKeyBits, kValueBits, kDim);
  static constexpr bool kRows = true;
  static constexpr uint32_t kKeyChannels = 16, kValueChannels = 8;
  static constexpr uint32_t kKeyBytes = kAt.key_row, kValueBytes = kAt.value_row;
  // Four pieces of a token are 64 bytes in 8 bits, and 32 in 4.
  static constexpr uint32_t Row(uint32_t bits, uint32_t bytes) {
    return bits == 8 ? (bytes + 63) / 128 * 128 + 64 : (bytes + 95) / 128 * 128 + 32;
  }
  static constexpr uint32_t kKeyRow = Row(kKeyBits, kKeyBytes);
  static constexpr uint32_t kValueRow = Row(kValueBits, kValueBytes);
  static constexpr uint32_t kTilePages = kTileTokens / kRangesTokens;
  static constexpr uint32_t kGroups = kAt.groups;
  // A page's range of keys, as its record has it, then its ranges of values.
  static constexpr uint32_t kRangeBytes = sizeof(RangeScales) + 2 * kDim;
  static constexpr uint32_t kMetaBytes = kRangeBytes + 2 * kGroups * kRangesTokens;
  static constexpr float kKeyHalf = HalfRange(kKeyBits), kValueHalf = HalfRange(kValueBits);
  static constexpr float kKeyStep = 1 / kKeyHalf, kValueStep = 1 / kValueHalf;
  static constexpr uint32_t kKeyFloats = kTilePages * 2 * kDim;
  static constexpr uint32_t kRangeFloats = kKeyFloats + kTileTokens * kGroups * 2;
  static_assert(kDim % 16 == 0 && kKeyRow >= kKeyBytes && kValueRow >= kValueBytes);

  // Begins to copy what a page has beside its rows to byte `to` of a tile; of the threads that do
  // so, the caller is the given one.
  TS_DEVICE static void CopyMeta(const Shared<uint8_t>& stages, uint32_t to,
                                 const PagesOfHead& pages, uint32_t page, uint32_t thread,
                                 uint32_t threads) {
    const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
    const Global<const uint8_t> records(pages.records.bytes, "records");
    for (uint32_t at = thread * 16; at < kMetaBytes; at += threads * 16) {
      if (at < kRangeBytes) {
        CopyAsync16(stages, to + at, records,
                    ItemAt(pages.records, pages.head, page) + pages.spread_at + at);
      } else {
        CopyAsync16(stages, to + at, bytes,
                    ItemAt(pages.slabs, pages.head, page) + kAt.v_middle_at + at - kRangeBytes);
      }
    }
  }

  // Makes the floats of a tile's `tokens`, whole pages, whose meta begins at `meta`.
  TS_DEVICE static void Prepare(const Shared<uint8_t>& tile, const Shared<float>& ranges,
                                uint32_t meta, uint32_t tokens) {
    const uint32_t pages = tokens / kRangesTokens;
    for (uint32_t i = ThreadIndex(); i < pages * kDim; i += kDecodeThreads) {
      const uint32_t page = i / kDim, c = i % kDim, at = meta + page * kMetaBytes;
      const auto scales = tile.Get<RangeScales>(at);
      const auto middle = static_cast<int8_t>(tile.Get(at + sizeof scales + c));
      const uint32_t reach = tile.Get(at + sizeof scales + kDim + c);
      ranges.Set(page * 2 * kDim + c, static_cast<float>(middle) * scales.key_middle);
      ranges.Set((page * 2 + 1) * kDim + c,
                 static_cast<float>(reach) * scales.key_reach * kKeyStep);
    }
    for (uint32_t i = ThreadIndex(); i < tokens * kGroups; i += kDecodeThreads) {
      const uint32_t token = i / kGroups, group = i % kGroups;
      const uint32_t at = meta + token / kRangesTokens * kMetaBytes;
      const auto scales = tile.Get<RangeScales>(at);
      const uint32_t of_token = at + kRangeBytes + group * kRangesTokens + token % kRangesTokens;
      const auto middle = static_cast<int8_t>(tile.Get(of_token));
      const uint32_t reach = tile.Get(of_token + kGroups * kRangesTokens);
      ranges.Set(kKeyFloats + 2 * i, static_cast<float>(middle) * scales.value_middle);
      ranges.Set(kKeyFloats + 2 * i + 1,
                 static_cast<float>(reach) * scales.value_reach * kValueStep);
    }
  }

  TS_DEVICE static void Keys(const Shared<uint8_t>& tile, const Shared<float>& ranges,
                             uint32_t token, uint32_t piece, float (&k)[kKeyChannels]) {
    Codes<kKeyBits>(tile, token * kKeyRow + piece * (2 * kKeyBits), k);
    const uint32_t at = token / kRangesTokens * 2 * kDim + piece * kKeyChannels;
    TS_UNROLL
    for (uint32_t i = 0; i < kKeyChannels; i += 4) {
      const auto middle = ranges.Get<Line<float>>(at + i);
      const auto step = ranges.Get<Line<float>>(at + kDim + i);
      TS_UNROLL
      for (uint32_t j = 0; j < 4; ++j) {
        k[i + j] = Fma(k[i + j] - kKeyHalf, step.at[j], middle.at[j]);
      }
    }
  }
  TS_DEVICE static void Values(const Shared<uint8_t>& tile, const Shared<float>& ranges,
                               uint32_t token, uint32_t piece, float (&v)[kValueChannels]) {
    Codes<kValueBits>(tile, kTileTokens * kKeyRow + token * kValueRow + piece * kValueBits, v);
    const uint32_t group = piece * kValueChannels / kRangeChannels;
    const uint32_t at = kKeyFloats + 2 * (token * kGroups + group);
    const float middle = ranges.Get(at), step = ranges.Get(at + 1);
    TS_UNROLL
    for (uint32_t i = 0; i < kValueChannels; ++i) {
      v[i] = Fma(v[i] - kValueHalf, step, middle);
    }
  }
};

// Bytes of a tile in shared memory: rows of keys, rows of values, then what its pages have besides.
template <class Form>
struct FormTile {
  static constexpr uint32_t kMetaAt = kTileTokens * (Form::kKeyRow + Form::kValueRow);
  static constexpr uint32_t kBytes = kMetaAt + Form::kTilePages * Form::kMetaBytes;
};

// The rows of `tokens` of a list from token `first` on.
template <class Form, class List>
TS_DEVICE void CopyRows(const Shared<uint8_t>& tile, const PagesOfHead& pages, const List& list,
                        uint32_t first, uint32_t tokens) {
  constexpr uint32_t kKeyLines = Form::kKeyBytes / 16, kValueLines = Form::kValueBytes / 16;
  constexpr uint32_t kValuesAt = kTileTokens * Form::kKeyRow;
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  const auto page_at = [&](uint32_t token) {
    return ItemAt(pages.slabs, pages.head, list((first + token) >> pages.page_shift));
  };
  const auto slot = [&](uint32_t token) {
    return (first + token) & ((1u << pages.page_shift) - 1);
  };
  for (uint32_t i = ThreadIndex(); i < tokens * kKeyLines; i += kDecodeThreads) {
    const uint32_t token = i / kKeyLines, line = i % kKeyLines * 16;
    const uint64_t from = page_at(token) + slot(token) * Form::kKeyBytes + line;
    CopyAsync16(tile, token * Form::kKeyRow + line, bytes, from);
    if constexpr (kValueLines == kKeyLines) {
      CopyAsync16(tile, kValuesAt + token * Form::kValueRow + line, bytes, from + pages.v_offset);
    }
  }
  if constexpr (kValueLines != kKeyLines) {
    for (uint32_t i = ThreadIndex(); i < tokens * kValueLines; i += kDecodeThreads) {
      const uint32_t token = i / kValueLines, line = i % kValueLines * 16;
      CopyAsync16(tile, kValuesAt + token * Form::kValueRow + line, bytes,
                  page_at(token) + pages.v_offset + slot(token) * Form::kValueBytes + line);
    }
  }
}

// Begins to copy `tokens` of a list, a tile at most, from token `first` on.
template <class Form, class List>
TS_DEVICE void CopyFormTile(const Shared<uint8_t>& tile, const PagesOfHead& pages, const List& list,
                            uint32_t first, uint32_t tokens) {
  if constexpr (Form::kRows) {
    CopyRows<Form>(tile, pages, list, first, tokens);
  } else {
    Form::CopyPages(tile, pages, list, first / Form::kPageTokens, tokens / Form::kPageTokens);
  }
  if constexpr (Form::kMetaBytes > 0) {
    for (uint32_t page = 0; page < tokens / kCodedTokens; ++page) {
      Form::CopyMeta(tile, FormTile<Form>::kMetaAt + page * Form::kMetaBytes, pages,
                     list((first >> pages.page_shift) + page), ThreadIndex(), kDecodeThreads);
    }
  }
}

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_DECODE_FORMS_H_
