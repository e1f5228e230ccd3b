// Vocabularies and texts that nobody has checked. The input is lines:
//   model NAME | pre NAME | bos ID | eos ID | unknown ID | add_bos | add_eos | no_space_prefix
//   token TYPE SCORE SPELLING | merge LEFT RIGHT | text
// and what follows the line "text", to the end, is the text.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace tinyserve {
namespace {

// The next word of `rest`, up to `end`; takes both from it.
std::string_view Next(std::string_view* rest, char end) {
  const size_t at = std::min(rest->find(end), rest->size());
  const std::string_view word = rest->substr(0, at);
  rest->remove_prefix(std::min(at + 1, rest->size()));
  return word;
}

int64_t Number(std::string_view word) {
  return std::strtoll(std::string(word).c_str(), nullptr, 10);
}

void ReadLine(std::string_view line, VocabSpec* spec) {
  const std::string_view key = Next(&line, ' ');
  if (key == "model") spec->model = line;
  if (key == "pre") spec->pre = line;
  if (key == "bos") spec->bos = Number(line);
  if (key == "eos") spec->eos = Number(line);
  if (key == "unknown") spec->unknown = Number(line);
  if (key == "add_bos") spec->add_bos = true;
  if (key == "add_eos") spec->add_eos = true;
  if (key == "no_space_prefix") spec->add_space_prefix = false;
  if (key == "merge") spec->merges.emplace_back(line);
  if (key == "token") {
    spec->types.push_back(Number(Next(&line, ' ')));
    spec->scores.push_back(std::strtod(std::string(Next(&line, ' ')).c_str(), nullptr));
    spec->tokens.emplace_back(line);
  }
}

// Whatever the chunks, the same valid UTF-8 comes out.
void CheckStream(std::string_view bytes) {
  Utf8Stream whole, single;
  std::string text = whole.Push(bytes);
  text += whole.Finish();
  std::string pieces;
  for (const char c : bytes) pieces += single.Push({&c, 1});
  pieces += single.Finish();
  TS_CHECK(text == pieces);
  TS_CHECK(ReplaceInvalidUtf8(text) == text);
}

void CheckEncode(const Tokenizer& tokenizer, std::string_view text, bool parse_special,
                 int64_t unknown) {
  const auto ids = tokenizer.Encode(text, false, parse_special);
  TS_CHECK(ids.ok() || ids.status().code() != Code::kInternal);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    TS_CHECK(id >= 0 && static_cast<uint32_t>(id) < tokenizer.size());
    // Text cannot spell a control token unless it is asked to.
    TS_CHECK(parse_special || id == unknown || !tokenizer.IsControl(id));
  }
  const auto decoded = tokenizer.Decode(*ids, true);
  TS_CHECK(decoded.ok());
  CheckStream(*decoded);
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  CheckStream(rest);
  VocabSpec spec;
  while (!rest.empty()) {
    const std::string_view line = Next(&rest, '\n');
    if (line == "text") break;
    ReadLine(line, &spec);
  }
  const auto tokenizer = Tokenizer::Create(spec);
  if (!tokenizer.ok()) {
    TS_CHECK(tokenizer.status().code() != Code::kInternal);
    return 0;
  }
  for (uint32_t id = 0; id < (*tokenizer)->size(); ++id) {
    const auto bytes = (*tokenizer)->TokenBytes(static_cast<int32_t>(id), true);
    TS_CHECK(bytes.ok());
    if (!spec.tokens[id].empty()) {
      TS_CHECK((*tokenizer)->FindToken(spec.tokens[id]) == static_cast<int32_t>(id));
    }
  }
  CheckEncode(**tokenizer, rest, false, spec.unknown);
  CheckEncode(**tokenizer, rest, true, spec.unknown);
  return 0;
}
