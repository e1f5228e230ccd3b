// The Rust crate textffi (rust/textffi) as C++ values: handles that free themselves, errors as
// Status. rust_text.cc is the one file that sees its C header.
#ifndef TINYSERVE_TEXT_RUST_TEXT_H_
#define TINYSERVE_TEXT_RUST_TEXT_H_

#include <cstdint>
#include <ctime>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tinyserve/status.h"

struct textffi_tokenizer;
struct textffi_template;
struct textffi_grammar_vocab;
struct textffi_grammar;
struct textffi_grammar_state;

namespace tinyserve {

struct RustDeleter {
  void operator()(textffi_tokenizer* tokenizer) const;
  void operator()(textffi_template* tmpl) const;
  void operator()(textffi_grammar_vocab* vocab) const;
  void operator()(textffi_grammar* grammar) const;
  void operator()(textffi_grammar_state* state) const;
};
// Immutable: many threads may use one at once.
using RustTokenizer = std::unique_ptr<textffi_tokenizer, RustDeleter>;
using RustTemplate = std::unique_ptr<textffi_template, RustDeleter>;
using RustGrammarVocab = std::unique_ptr<textffi_grammar_vocab, RustDeleter>;
using RustGrammar = std::unique_ptr<textffi_grammar, RustDeleter>;
// One thread at a time.
using RustGrammarState = std::unique_ptr<textffi_grammar_state, RustDeleter>;

// Borrowed for the call that makes a tokenizer of it. REQUIRES: kinds has one entry a token, scores
// too where `sentence_piece`, and these are finite; no two tokens are alike, but for empty ones.
struct RustVocab {
  bool sentence_piece = false;
  bool add_space_prefix = false;
  int32_t unknown = -1;
  std::string_view pre;
  std::span<const std::string> tokens;
  std::span<const uint8_t> kinds;  // [tokens] 1 to 6
  std::span<const float> scores;   // [tokens]
  std::span<const std::string> merges;
};

Result<RustTokenizer> NewRustTokenizer(const RustVocab& vocab);
Result<std::vector<int32_t>> RustEncode(const textffi_tokenizer& tokenizer, std::string_view text,
                                        bool parse_special);

Result<RustTemplate> NewRustTemplate(std::string_view source, std::string_view bos_token,
                                     std::string_view eos_token, uint64_t steps_max,
                                     uint64_t output_bytes_max);
// `now`: local time, for strftime_now.
Result<std::string> RustRender(const textffi_template& tmpl, std::string_view messages_json,
                               std::string_view extra_json, bool add_generation_prompt,
                               const std::tm& now);

// tokens: their bytes. control: one a token, not 0 where it stands for no text.
Result<RustGrammarVocab> NewRustGrammarVocab(std::span<const std::string> tokens,
                                             std::span<const uint8_t> control);
// kind: TEXTFFI_JSON_SCHEMA and so on. Errors: kInvalidArgument, kResourceExhausted.
Result<RustGrammar> NewRustGrammar(const textffi_grammar_vocab& vocab, uint8_t kind,
                                   std::string_view text);
Result<RustGrammarState> StartRustGrammar(const textffi_grammar& grammar);
// Bit t % 32 of bits[t / 32]: token t may come next; t = tokens: the answer may end.
// REQUIRES: bits for all of these.
Status RustGrammarMask(textffi_grammar_state* state, std::span<uint32_t> bits);
Status RustGrammarAccept(textffi_grammar_state* state, int32_t token);

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_RUST_TEXT_H_
