// UTF-8 taken apart one character at a time, for bytes that nobody has checked.
#ifndef TINYSERVE_TEXT_UTF8_H_
#define TINYSERVE_TEXT_UTF8_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace tinyserve {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Kind : uint8_t {
  kCharacter,
  kInvalid,     // these bytes begin no character, whatever follows
  kIncomplete,  // the text ends within a character that may yet become one
};

struct Utf8Step {
  Utf8Kind kind;
  uint32_t bytes;  // of the character, of the longest invalid start, or of all that is left
};

// The first step of `text`. REQUIRES: text is not empty.
Utf8Step FirstUtf8Step(std::string_view text);

// The code point of a whole character as kCharacter found it.
char32_t CodePoint(std::string_view character);

// Appends `code_point` in UTF-8. REQUIRES: a Unicode scalar value.
void AppendUtf8(char32_t code_point, std::string* out);

// `text` with every byte that is no part of a character replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_UTF8_H_
