// Schemas, regular expressions and grammars of requests: any bytes are compiled or refused, and
// what is compiled can be followed: what a mask allows is accepted.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "tests/support/byte_vocab.h"
#include "text/gbnf.h"
#include "text/grammar.h"

namespace tinyserve {
namespace {

// Says up to 16 tokens, chosen by the text itself.
void Follow(const CompiledGrammar& grammar, std::string_view text, const Tokenizer& tokenizer) {
  Result<std::unique_ptr<GrammarState>> state = grammar.Start();
  TS_CHECK(state.ok());
  std::vector<uint32_t> bits((tokenizer.size() + 31) / 32);
  for (size_t step = 0; step < 16; ++step) {
    if (!(*state)->Mask(bits).ok()) return;  // too costly
    std::vector<int32_t> allowed;
    for (uint32_t t = 0; t < tokenizer.size(); ++t) {
      if ((bits[t / 32] >> t % 32 & 1) != 0) allowed.push_back(static_cast<int32_t>(t));
    }
    if (allowed.empty()) return;
    const size_t pick = static_cast<unsigned char>(text[step % text.size()]) + step;
    const int32_t token = allowed[pick % allowed.size()];
    if (token == tokenizer.eos()) return;
    if (!(*state)->Accept(token).ok()) return;  // too costly
  }
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  static const std::unique_ptr<Tokenizer> tokenizer = ByteTokenizer();
  static const std::unique_ptr<GrammarCompiler> compiler = *GrammarCompiler::Create(*tokenizer);
  if (size < 2) return 0;
  const auto language = static_cast<GrammarLanguage>(data[0] % 3);
  std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  Result<std::string> lark(std::string{});
  if (language == GrammarLanguage::kLark && IsGbnf(text)) {
    lark = LarkOfGbnf(text);
    if (!lark.ok()) {
      TS_CHECK(!lark.status().message().empty());
      return 0;
    }
    text = *lark;
  }
  const Result<std::unique_ptr<CompiledGrammar>> grammar = compiler->Compile(language, text);
  if (grammar.ok()) {
    Follow(**grammar, text, *tokenizer);
  } else {
    TS_CHECK(!grammar.status().message().empty());
  }
  return 0;
}
