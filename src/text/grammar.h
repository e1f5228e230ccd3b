// Grammars that answers must follow: JSON schemas, regular expressions, Lark grammars, compiled for
// one vocabulary.
#ifndef TINYSERVE_TEXT_GRAMMAR_H_
#define TINYSERVE_TEXT_GRAMMAR_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "text/tokenizer.h"
#include "tinyserve/status.h"

namespace tinyserve {

enum class GrammarLanguage : uint8_t {
  kJsonSchema,
  kRegex,  // of the whole text, in the syntax of Rust's crate regex; no look-around
  kLark,   // Lark's own form of context-free grammars, beginning at `start`
};

// Where one answer stands in its grammar. One thread at a time.
class GrammarState {
 public:
  virtual ~GrammarState() = default;
  // Sets bit t % 32 of bits[t / 32] for each token t that may come next, end tokens where the
  // text may end here; clears all others. REQUIRES: a bit for each token of the tokenizer. Errors:
  // kInvalidArgument (the grammar needs more work than a step may have).
  virtual Status Mask(std::span<uint32_t> bits) = 0;
  // REQUIRES: Mask allowed the token, and it is no end token.
  virtual Status Accept(int32_t token) = 0;
};

// May be used by many threads at once.
class CompiledGrammar {
 public:
  virtual ~CompiledGrammar() = default;
  virtual Result<std::unique_ptr<GrammarState>> Start() const = 0;
};

// May be used by many threads at once; must outlive what it compiles.
class GrammarCompiler {
 public:
  // `tokenizer` is used during the call alone. Takes some tens of milliseconds.
  static Result<std::unique_ptr<GrammarCompiler>> Create(const Tokenizer& tokenizer);
  virtual ~GrammarCompiler() = default;
  // `text` is not trusted; at most 256 KiB, brackets 128 deep, schemas 64 deep. Errors:
  // kInvalidArgument: what is wrong with it, is not supported, or costs too much.
  virtual Result<std::unique_ptr<CompiledGrammar>> Compile(GrammarLanguage language,
                                                           std::string_view text) const = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_GRAMMAR_H_
