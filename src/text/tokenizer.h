// Tokenizers built from vocabulary data (BPE and SentencePiece-style), and safe streaming of their
// output.
#ifndef TINYSERVE_TEXT_TOKENIZER_H_
#define TINYSERVE_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// Plain vocabulary data, as GGUF's tokenizer.ggml.* keys hold it. Nothing here is trusted.
struct VocabSpec {
  std::string
      model;  // "gpt2": byte-level BPE with `merges`; "llama": SentencePiece-style with `scores`
  std::string pre;  // pre-tokenizer name ("smollm", "llama-bpe", "qwen2", "gpt-2", "default", ...)
  std::vector<std::string> tokens;
  std::vector<double> scores;  // one a token, for "llama"
  std::vector<int64_t>
      types;  // one a token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;           // "left right", for "gpt2"
  int64_t bos = -1, eos = -1, unknown = -1;  // -1: none
  bool add_bos = false, add_eos = false, add_space_prefix = true;
};

class Tokenizer {
 public:
  // Errors: kUnsupported (model or pre-tokenizer, by name), kCorrupt (inconsistent vocabulary),
  // kInternal.
  static Result<std::unique_ptr<Tokenizer>> Create(const VocabSpec& spec);
  virtual ~Tokenizer() = default;

  // Token ids of `text`. Invalid UTF-8 is taken byte by byte as U+FFFD, as the reference does.
  // `add_special`: put bos/eos as the vocabulary asks. `parse_special`: control tokens spelled in
  // `text` become those tokens (templates' output); off for text that users wrote.
  virtual Result<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                              bool parse_special) const = 0;
  // Bytes that token `id` stands for (a byte token: one byte; a control token: nothing, or its
  // spelling when `spell_special`). Concatenating the bytes of a sequence gives its text;
  // SentencePiece's first space too. Errors: kInvalidArgument when id is outside [0, size).
  virtual Result<std::string> TokenBytes(int32_t id, bool spell_special) const = 0;
  // Text of a sequence; invalid UTF-8 becomes U+FFFD.
  virtual Result<std::string> Decode(std::span<const int32_t> ids, bool spell_special) const = 0;

  virtual uint32_t size() const = 0;
  virtual int32_t bos() const = 0;  // -1: none
  virtual int32_t eos() const = 0;
  virtual bool IsControl(int32_t id) const = 0;
  // The id spelled exactly `token` in the vocabulary, or -1.
  virtual int32_t FindToken(std::string_view token) const = 0;
  // Tokens that end an answer: eos, and the family's end-of-turn tokens found in the vocabulary
  // (<|im_end|>, <|eot_id|>, <|endoftext|>, </s>, <end_of_turn> ...).
  virtual const std::vector<int32_t>& end_tokens() const = 0;
};

// Turns token bytes into text that never ends in half a character: holds back an incomplete UTF-8
// tail.
class Utf8Stream {
 public:
  // Complete characters so far; invalid bytes become U+FFFD.
  std::string Push(std::string_view bytes);
  // What is left, as U+FFFD where it is no character.
  std::string Finish();

 private:
  std::string tail_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TEXT_TOKENIZER_H_
