// For kernels: 64 tokens' keys and values as halves in shared memory, the operands of tensor cores,
// made of pages of any form.
//
// A block takes the tiles of what it sees in order, at absolute positions: Take(first), called by
// all threads, returns that of the tokens first .. first + 63 when it is there, nobody reads the
// one before, and what comes next is on its way.
#ifndef TINYSERVE_KERNELS_CUDA_PROMPT_TILES_H_
#define TINYSERVE_KERNELS_CUDA_PROMPT_TILES_H_

#include "kernels/cuda/attention_prompt.h"
#include "kernels/cuda/decode_forms.h"
#include "kernels/cuda/simt.h"

namespace tinyserve::cuda {

constexpr uint32_t kPromptThreads = 128;
static_assert(kPromptThreads == kDecodeThreads);  // the forms' copies count on it

// 64 rows of keys, then as many of values.
template <uint32_t kDim>
struct OperandTile {
  static constexpr uint32_t kRow = kDim + 8;  // halves: eight rows' lines lie in different banks
  static constexpr uint32_t kValuesAt = kPromptTile * kRow;
  static constexpr uint32_t kCount = 2 * kValuesAt;
};

struct PromptCall {
  PromptStep step;
  PagesOfHead pages, raw;  // head: set by the block; raw: where pages are coded
  uint32_t kv_heads, group;
};

// What a block sees: the tokens 0 .. end - 1 of a run's sequence at one KV head. Where pages are
// coded all its queries lie in one window, which they see raw.
struct PromptSight {
  uint32_t run, raw_first, head, window, end;
};

// Begins to copy the tokens first .. first + 63, pages of T; zeros in place of those from `end` on,
// whose weights are 0, and 0 times what pages happen to hold need not be. list(i): the page of the
// tokens i * page_tokens and on.
template <class T, uint32_t kDim, class List>
TS_DEVICE void CopyHalves(const Shared<T>& to, const PagesOfHead& pages, const List& list,
                          uint32_t first, uint32_t end) {
  using Tile = OperandTile<kDim>;
  constexpr uint32_t kLines = kDim / 8;
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  for (uint32_t i = ThreadIndex(); first < end && i < kPromptTile * kLines; i += kPromptThreads) {
    const uint32_t row = i / kLines, line = i % kLines, token = first + row;
    const uint32_t at = row * Tile::kRow + line * 8;
    if (token >= end) {
      const Line<T> zeros{};
      to.template Set<Line<T>>(at, zeros);
      to.template Set<Line<T>>(at + Tile::kValuesAt, zeros);
      continue;
    }
    const uint32_t slot = token & ((1u << pages.page_shift) - 1);
    const uint64_t from = ItemAt(pages.slabs, pages.head, list(token >> pages.page_shift)) +
                          slot * kDim * 2 + line * 16;
    CopyAsync16(to, at, bytes, from);
    CopyAsync16(to, at + Tile::kValuesAt, bytes, from + pages.v_offset);
  }
  CopyAsyncCommit();
}

// Columns of a table of pages that belong to a run.
TS_DEVICE Global<const uint32_t> TableOf(const Array<const uint32_t>& tables, uint32_t run,
                                         uint32_t pages) {
  return Global<const uint32_t>(tables, "tables").Part(uint64_t{run} * pages, pages);
}

// Of f16 and bf16: a tile is copied as it is, while the one before is multiplied.
template <class T, uint32_t kHeadDim>
class FloatTiles {
 public:
  using Half = T;
  static constexpr uint32_t kDim = kHeadDim;
  static constexpr uint32_t kCount = OperandTile<kDim>::kCount;
  static constexpr uint32_t kSharedBytes = 2 * kCount * sizeof(T);
  static constexpr uint32_t kResident = kDim < 128 ? 3 : 2;  // blocks, for which registers are left

  TS_DEVICE FloatTiles(SharedArena& arena, const PromptCall& call, const PromptSight& sight)
      : stages_(arena.Take<T>(2 * kCount, "stages")),
        pages_(call.pages),
        table_(TableOf(call.step.tables, sight.run, call.step.table_pages)),
        end_(sight.end) {
    pages_.head = sight.head;
    Copy(0);
  }
  TS_DEVICE Shared<T> Take(uint32_t first) const {
    CopyAsyncWait<0>();
    SyncBlock();  // the tile is here, and nobody reads the one before
    Copy(first + kPromptTile);
    return Stage(first);
  }

 private:
  TS_DEVICE Shared<T> Stage(uint32_t first) const {
    return stages_.Part(first / kPromptTile % 2 * kCount, kCount);
  }
  TS_DEVICE void Copy(uint32_t first) const {
    CopyHalves<T, kDim>(
        Stage(first), pages_, [&](uint32_t i) { return table_.Get(i); }, first, end_);
  }

  Shared<T> stages_;
  PagesOfHead pages_;
  Global<const uint32_t> table_;
  uint32_t end_;
};

// f(i) for the caller's share of 0 .. count - 1 among `threads`; how often is known when compiled.
template <uint32_t kCount, uint32_t kThreads, class Each>
TS_DEVICE void ForShare(uint32_t thread, const Each& f) {
  TS_UNROLL
  for (uint32_t first = 0; first < kCount; first += kThreads) {
    if (first + kThreads <= kCount || first + thread < kCount) f(first + thread);
  }
}

// Begins to copy the page that is the tile's first or second, by the lanes of a warp.
template <class Form>
TS_DEVICE void CopyPage(const Shared<uint8_t>& tile, uint32_t place, const PagesOfHead& pages,
                        uint32_t page) {
  const uint32_t lane = LaneIndex();
  const Global<const uint8_t> bytes(pages.slabs.bytes, "pages");
  const uint64_t from = ItemAt(pages.slabs, pages.head, page);
  if constexpr (Form::kRows) {
    constexpr uint32_t kKeyLines = Form::kKeyBytes / 16, kValueLines = Form::kValueBytes / 16;
    const uint32_t first = place * kCodedTokens;
    ForShare<kCodedTokens * kKeyLines, kWarpLanes>(lane, [&](uint32_t i) {
      const uint32_t to = (first + i / kKeyLines) * Form::kKeyRow + i % kKeyLines * 16;
      CopyAsync16(tile, to, bytes, from + i * 16);
    });
    ForShare<kCodedTokens * kValueLines, kWarpLanes>(lane, [&](uint32_t i) {
      const uint32_t to = kTileTokens * Form::kKeyRow +
                          (first + i / kValueLines) * Form::kValueRow + i % kValueLines * 16;
      CopyAsync16(tile, to, bytes, from + pages.v_offset + i * 16);
    });
  } else {
    ForShare<Form::kAt.page_bytes / 16, kWarpLanes>(lane, [&](uint32_t i) {
      CopyAsync16(tile, place * Form::kAt.page_bytes + i * 16, bytes, from + i * 16);
    });
  }
  Form::CopyMeta(tile, FormTile<Form>::kMetaAt + place * Form::kMetaBytes, pages, page, lane,
                 kWarpLanes);
}

// Of coded pages: codes are copied while the tile before is multiplied, then decoded as decode
// attention decodes them, by two tiles of its form, and rounded to f16. The raw window comes last,
// into the place of what was decoded, so that it is waited for.
template <class Form>
class CodedTiles {
 public:
  using Half = F16;
  static constexpr uint32_t kDim = Form::kDim;
  static constexpr uint32_t kParts = kPromptTile / kTileTokens;
  static_assert(kParts * Form::kTilePages == kPromptThreads / kWarpLanes);
  static constexpr uint32_t kPartBytes = FormTile<Form>::kBytes;
  static constexpr uint32_t kOperands = OperandTile<kDim>::kCount;
  static constexpr uint32_t kSharedBytes =
      kOperands * 2 + kParts * (kPartBytes + Form::kRangeFloats * sizeof(float));
  static constexpr uint32_t kResident = kDim == 64 ? 3 : 2;
  static_assert(kPartBytes % 16 == 0 && Form::kRangeFloats % 4 == 0);

  TS_DEVICE CodedTiles(SharedArena& arena, const PromptCall& call, const PromptSight& sight)
      : operands_(arena.Take<F16>(kOperands, "operands")),
        codes_(arena.Take<uint8_t>(kParts * kPartBytes, "codes")),
        floats_(arena.Take<float>(kParts * Form::kRangeFloats, "ranges")),
        pages_(call.pages),
        raw_(call.raw),
        table_(TableOf(call.step.tables, sight.run, call.step.table_pages)),
        raw_table_(TableOf(call.step.raw_tables, sight.run, call.step.raw_table_pages)),
        raw_first_page_(sight.raw_first >> call.raw.page_shift),
        window_(sight.window),
        end_(sight.end) {
    pages_.head = raw_.head = sight.head;
    CopyCodes(0);
  }
  TS_DEVICE Shared<F16> Take(uint32_t first) const {
    CopyAsyncWait<0>();
    SyncBlock();  // the codes are here, and nobody reads the operands of the tile before
    if (first == window_) {
      const auto list = [&](uint32_t i) { return raw_table_.Get(i - raw_first_page_); };
      CopyHalves<F16, kDim>(operands_, raw_, list, first, end_);
      CopyAsyncWait<0>();
      SyncBlock();
      return operands_;
    }
    TS_UNROLL
    for (uint32_t part = 0; part < kParts; ++part)
      Form::Prepare(Codes(part), Floats(part), FormTile<Form>::kMetaAt, kTileTokens);
    SyncBlock();
    Decode();
    SyncBlock();  // the operands are whole, and the codes have been read
    CopyCodes(first + kPromptTile);
    return operands_;
  }

 private:
  TS_DEVICE Shared<uint8_t> Codes(uint32_t part) const {
    return codes_.Part(part * kPartBytes, kPartBytes);
  }
  TS_DEVICE Shared<float> Floats(uint32_t part) const {
    return floats_.Part(part * Form::kRangeFloats, Form::kRangeFloats);
  }
  TS_DEVICE void CopyCodes(uint32_t first) const {
    if (first >= window_) return;
    // A page for each warp.
    const uint32_t place = WarpIndex(), page = table_.Get(first / kCodedTokens + place);
    CopyPage<Form>(Codes(place / Form::kTilePages), place % Form::kTilePages, pages_, page);
    CopyAsyncCommit();
  }
  TS_DEVICE void Decode() const {
    using Tile = OperandTile<kDim>;
    constexpr uint32_t kKeyPieces = kDim / Form::kKeyChannels;
    constexpr uint32_t kValuePieces = kDim / Form::kValueChannels;
    ForShare<kPromptTile * kKeyPieces, kPromptThreads>(ThreadIndex(), [&](uint32_t i) {
      const uint32_t row = i / kKeyPieces, piece = i % kKeyPieces;
      const uint32_t part = row / kTileTokens, token = row % kTileTokens;
      float k[Form::kKeyChannels];
      Form::Keys(Codes(part), Floats(part), token, piece, k);
      Store(row * Tile::kRow + piece * Form::kKeyChannels, k);
    });
    ForShare<kPromptTile * kValuePieces, kPromptThreads>(ThreadIndex(), [&](uint32_t i) {
      const uint32_t row = i / kValuePieces, piece = i % kValuePieces;
      const uint32_t part = row / kTileTokens, token = row % kTileTokens;
      float v[Form::kValueChannels];
      Form::Values(Codes(part), Floats(part), token, piece, v);
      Store(Tile::kValuesAt + row * Tile::kRow + piece * Form::kValueChannels, v);
    });
  }
  template <uint32_t kChannels>
  TS_DEVICE void Store(uint32_t at, const float (&x)[kChannels]) const {
    TS_UNROLL
    for (uint32_t i = 0; i < kChannels; i += 8) {
      Line<uint32_t> line;
      TS_UNROLL
      for (uint32_t j = 0; j < 4; ++j) line.at[j] = PackHalves<F16>(x[i + 2 * j], x[i + 2 * j + 1]);
      operands_.template Set<Line<uint32_t>>(at + i, line);
    }
  }

  Shared<F16> operands_;
  Shared<uint8_t> codes_;  // two tiles of the form
  Shared<float> floats_;   // and what it makes of their ranges
  PagesOfHead pages_, raw_;
  Global<const uint32_t> table_, raw_table_;
  uint32_t raw_first_page_, window_, end_;
};

}  // namespace tinyserve::cuda

#endif  // TINYSERVE_KERNELS_CUDA_PROMPT_TILES_H_
