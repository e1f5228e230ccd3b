#include "text/utf8.h"

#include "base/check.h"
#include "text/tokenizer.h"

namespace tinyserve {
namespace {

// What may follow a first byte: how many bytes in all, and the range of the second one, which rules
// out overlong forms, surrogates and values past U+10FFFF. The others are 0x80 to 0xBF.
struct Lead {
  uint32_t bytes;
  uint8_t second_min, second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xC2 && byte <= 0xDF) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

Utf8Step FirstUtf8Step(std::string_view text) {
  const Lead lead = LeadOf(static_cast<uint8_t>(text[0]));
  if (lead.bytes == 0) return {Utf8Kind::kInvalid, 1};
  for (uint32_t i = 1; i < lead.bytes; ++i) {
    if (i == text.size()) return {Utf8Kind::kIncomplete, i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xBF;
    if (byte < low || byte > high) return {Utf8Kind::kInvalid, i};
  }
  return {Utf8Kind::kCharacter, lead.bytes};
}

char32_t CodePoint(std::string_view character) {
  const auto first = static_cast<uint8_t>(character[0]);
  if (character.size() == 1) return first;
  // A first byte of n bytes has n ones and a zero before its bits of the code point.
  char32_t code = first & (0xFFu >> (character.size() + 1));
  for (size_t i = 1; i < character.size(); ++i) {
    code = code << 6 | (static_cast<uint8_t>(character[i]) & 0x3F);
  }
  return code;
}

void AppendUtf8(char32_t code_point, std::string* out) {
  TS_CHECK(code_point <= 0x10FFFF && (code_point < 0xD800 || code_point > 0xDFFF));
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | (code_point >> shift & 0x3F)));
  };
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | code_point >> 12));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = FirstUtf8Step(text);
    if (step.kind == Utf8Kind::kCharacter) {
      out.append(text.substr(0, step.bytes));
    } else {
      for (uint32_t i = 0; i < step.bytes; ++i) out.append(kReplacementCharacter);
    }
    text.remove_prefix(step.bytes);
  }
  return out;
}

std::string Utf8Stream::Push(std::string_view bytes) {
  tail_.append(bytes);
  std::string out;
  std::string_view rest = tail_;
  while (!rest.empty()) {
    const Utf8Step step = FirstUtf8Step(rest);
    if (step.kind == Utf8Kind::kIncomplete) break;
    out.append(step.kind == Utf8Kind::kCharacter ? rest.substr(0, step.bytes)
                                                 : kReplacementCharacter);
    rest.remove_prefix(step.bytes);
  }
  tail_.erase(0, tail_.size() - rest.size());
  return out;
}

std::string Utf8Stream::Finish() {
  const bool any = !tail_.empty();
  tail_.clear();
  return std::string(any ? kReplacementCharacter : std::string_view());
}

}  // namespace tinyserve
