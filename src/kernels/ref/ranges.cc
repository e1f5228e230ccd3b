#include "kernels/ref/ranges.h"

#include "page/ranges.h"

namespace tinyserve::ref {
namespace {

// Ranges of a page's keys, or of its values, from the least and largest of their numbers.
struct Ranges {
  std::vector<float> low, high;

  explicit Ranges(size_t count) : low(count, INFINITY), high(count, -INFINITY) {}
  void Add(size_t range, float x) {
    low[range] = std::min(low[range], x);
    high[range] = std::max(high[range], x);
  }
};

// Where the codes of ranges are, and their scales.
struct RangeCodes {
  const uint8_t* middle;  // signed
  const uint8_t* reach;
  float middle_scale, reach_scale;

  float Middle(size_t range) const {
    return static_cast<float>(static_cast<int8_t>(middle[range])) * middle_scale;
  }
  float Reach(size_t range) const { return static_cast<float>(reach[range]) * reach_scale; }
};

// Codes ranges to middle and reach, and returns how to read them.
RangeCodes CodeRanges(const Ranges& ranges, uint8_t* middle, uint8_t* reach) {
  const size_t count = ranges.low.size();
  std::vector<float> numbers(count);
  float top = 0;
  for (size_t i = 0; i < count; ++i) {
    numbers[i] = (ranges.low[i] + ranges.high[i]) * 0.5f;
    top = std::max(top, std::fabs(numbers[i]));
  }
  RangeCodes codes{.middle = middle, .reach = reach, .middle_scale = 0, .reach_scale = 0};
  const float to_middle = ToCodes(top, 127);
  codes.middle_scale = to_middle == 0 ? 0 : top * (1.0f / 127.0f);
  top = 0;
  for (size_t i = 0; i < count; ++i) {
    middle[i] = static_cast<uint8_t>(Code(numbers[i] * to_middle, -127, 127));
    const float at = codes.Middle(i);
    numbers[i] = std::max(ranges.high[i] - at, at - ranges.low[i]);
    top = std::max(top, numbers[i]);
  }
  const float to_reach = ToCodes(top, 255);
  codes.reach_scale = to_reach == 0 ? 0 : top * (1.0f / 255.0f);
  for (size_t i = 0; i < count; ++i) {
    reach[i] = static_cast<uint8_t>(Code(std::ceil(numbers[i] * to_reach), 0, 255));
  }
  return codes;
}

uint32_t CodeIn(const RangeCodes& codes, size_t range, uint32_t bits, float x) {
  const float half = HalfRange(bits), reach = codes.Reach(range);
  const float to_codes = reach == 0 ? 0 : half / reach;
  return static_cast<uint32_t>(
      Code(std::fma(x - codes.Middle(range), to_codes, half), 0, (1 << bits) - 1));
}

float NumberOf(const RangeCodes& codes, size_t range, uint32_t bits, uint32_t code) {
  const float half = HalfRange(bits), step = codes.Reach(range) * (1 / half);
  return std::fma(static_cast<float>(code) - half, step, codes.Middle(range));
}

// Where the code of a number is: `outer` and `inner` are its channel and token, or its token and
// channel; `inners` how many there are of the latter.
struct CodePlace {
  uint64_t byte;
  uint32_t shift;
};
CodePlace PlaceOf(uint32_t bits, uint32_t outer, uint32_t inner, uint32_t inners) {
  if (bits == 8) return {(uint64_t{outer / 4} * inners + inner) * 4 + outer % 4, 0};
  return {(uint64_t{outer / 8} * inners + inner) * 4 + outer % 4, outer % 8 / 4 * 4};
}

}  // namespace

void SealRanges(const KvShape& shape, const PageNumbers& numbers, uint8_t* page, uint8_t* range) {
  const RangesLayout at = RangesLayoutOf(shape.type, shape.head_dim);
  Ranges keys(at.channels), values(uint64_t{at.groups} * kRangesTokens);
  for (uint32_t t = 0; t < kRangesTokens; ++t) {
    for (uint32_t c = 0; c < at.channels; ++c) keys.Add(c, numbers.Key(t)[c]);
    for (uint32_t c = 0; c < shape.head_dim; ++c)
      values.Add(uint64_t{c / kRangeChannels} * kRangesTokens + t, numbers.Value(t)[c]);
  }
  std::memset(page, 0, at.page_bytes);
  uint8_t* key_codes = range + sizeof(RangeScales);
  const RangeCodes k = CodeRanges(keys, key_codes, key_codes + at.channels);
  const RangeCodes v = CodeRanges(values, page + at.v_middle_at, page + at.v_reach_at);
  Write(RangeScales{k.middle_scale, k.reach_scale, v.middle_scale, v.reach_scale}, range);
  for (uint32_t t = 0; t < kRangesTokens; ++t) {
    for (uint32_t c = 0; c < at.channels; ++c) {
      const CodePlace in_keys = PlaceOf(at.key_bits, c, t, kRangesTokens);
      page[at.k_at + in_keys.byte] |=
          static_cast<uint8_t>(CodeIn(k, c, at.key_bits, numbers.Key(t)[c]) << in_keys.shift);
      // Channels past the last group have its range.
      const uint64_t group = std::min(c / kRangeChannels, at.groups - 1);
      const uint32_t code =
          CodeIn(v, group * kRangesTokens + t, at.value_bits, numbers.Value(t)[c]);
      const CodePlace in_values = PlaceOf(at.value_bits, t, c, at.channels);
      page[at.v_at + in_values.byte] |=
          static_cast<uint8_t>((at.value_bits == 8 ? code ^ 0x80u : code) << in_values.shift);
    }
  }
}

void ReadRanges(const KvShape& shape, const uint8_t* page, const uint8_t* range, uint32_t slot,
                float* k, float* v) {
  const RangesLayout at = RangesLayoutOf(shape.type, shape.head_dim);
  const auto scales = Read<RangeScales>(range);
  const uint8_t* key_codes = range + sizeof scales;
  const RangeCodes keys{key_codes, key_codes + at.channels, scales.key_middle, scales.key_reach};
  const RangeCodes values{page + at.v_middle_at, page + at.v_reach_at, scales.value_middle,
                          scales.value_reach};
  const auto code = [](const uint8_t* codes, CodePlace place, uint32_t bits) {
    return static_cast<uint32_t>(codes[place.byte] >> place.shift) & ((1u << bits) - 1);
  };
  for (uint32_t c = 0; c < shape.head_dim; ++c) {
    const CodePlace in_keys = PlaceOf(at.key_bits, c, slot, kRangesTokens);
    k[c] = NumberOf(keys, c, at.key_bits, code(page + at.k_at, in_keys, at.key_bits));
    const CodePlace in_values = PlaceOf(at.value_bits, slot, c, at.channels);
    const uint32_t value = code(page + at.v_at, in_values, at.value_bits);
    v[c] = NumberOf(values, uint64_t{c / kRangeChannels} * kRangesTokens + slot, at.value_bits,
                    at.value_bits == 8 ? value ^ 0x80u : value);
  }
}

}  // namespace tinyserve::ref
