// A tokenizer of every byte and of some longer tokens, for tests of what is said token by token.
#ifndef TINYSERVE_TESTS_SUPPORT_BYTE_VOCAB_H_
#define TINYSERVE_TESTS_SUPPORT_BYTE_VOCAB_H_

#include <fmt/format.h>

#include <memory>

#include "base/check.h"
#include "text/tokenizer.h"

namespace tinyserve {

inline std::unique_ptr<Tokenizer> ByteTokenizer() {
  VocabSpec spec;
  spec.model = "llama";
  spec.tokens = {"<unk>", "<s>", "</s>"};
  spec.types = {2, 3, 3};
  for (int byte = 0; byte < 256; ++byte) {
    spec.tokens.push_back(fmt::format("<0x{:02X}>", byte));
    spec.types.push_back(6);
  }
  for (const char* token : {"true", "false", "null", "{\"", "\":", "\",", "\"}", "}}", "[]", "],",
                            "12", "0.5", "the", "▁a", "ab", "é"}) {
    spec.tokens.push_back(token);
    spec.types.push_back(1);
  }
  spec.scores.assign(spec.tokens.size(), 0);
  spec.bos = 1;
  spec.eos = 2;
  spec.unknown = 0;
  Result<std::unique_ptr<Tokenizer>> made = Tokenizer::Create(spec);
  TS_CHECK(made.ok());
  return *std::move(made);
}

}  // namespace tinyserve

#endif  // TINYSERVE_TESTS_SUPPORT_BYTE_VOCAB_H_
