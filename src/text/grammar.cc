#include "text/grammar.h"

#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/rust_text.h"

namespace tinyserve {
namespace {

// Of the vocabulary that a grammar is compiled for.
struct Ends {
  uint32_t tokens = 0;
  std::vector<int32_t> end_tokens;
};

class RustState : public GrammarState {
 public:
  RustState(RustGrammarState state, const Ends* ends)
      : state_(std::move(state)), ends_(ends), own_(ends->tokens / 32 + 1) {}

  Status Mask(std::span<uint32_t> bits) override {
    TS_CHECK(bits.size() * 32 >= ends_->tokens);
    TS_RETURN_IF_ERROR(RustGrammarMask(state_.get(), own_));
    // The crate knows one end of the answer: the token after the last.
    uint32_t& last = own_[ends_->tokens / 32];
    const uint32_t end = uint32_t{1} << (ends_->tokens % 32);
    const bool may_end = (last & end) != 0;
    last &= ~end;
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = i < own_.size() ? own_[i] : 0;
    for (const int32_t token : ends_->end_tokens) {
      const auto t = static_cast<uint32_t>(token);
      const uint32_t bit = uint32_t{1} << (t % 32);
      bits[t / 32] = may_end ? bits[t / 32] | bit : bits[t / 32] & ~bit;
    }
    return Status();
  }

  Status Accept(int32_t token) override { return RustGrammarAccept(state_.get(), token); }

 private:
  RustGrammarState state_;
  const Ends* ends_;
  std::vector<uint32_t> own_;  // a bit for each token and one for the end
};

class RustCompiled : public CompiledGrammar {
 public:
  RustCompiled(RustGrammar grammar, const Ends* ends) : grammar_(std::move(grammar)), ends_(ends) {}

  Result<std::unique_ptr<GrammarState>> Start() const override {
    TS_ASSIGN_OR_RETURN(RustGrammarState state, StartRustGrammar(*grammar_));
    return std::unique_ptr<GrammarState>(std::make_unique<RustState>(std::move(state), ends_));
  }

 private:
  RustGrammar grammar_;
  const Ends* ends_;
};

class RustCompiler : public GrammarCompiler {
 public:
  RustCompiler(RustGrammarVocab vocab, Ends ends)
      : vocab_(std::move(vocab)), ends_(std::move(ends)) {}

  Result<std::unique_ptr<CompiledGrammar>> Compile(GrammarLanguage language,
                                                   std::string_view text) const override {
    TS_ASSIGN_OR_RETURN(RustGrammar grammar,
                        NewRustGrammar(*vocab_, static_cast<uint8_t>(language), text));
    return std::unique_ptr<CompiledGrammar>(
        std::make_unique<RustCompiled>(std::move(grammar), &ends_));
  }

 private:
  RustGrammarVocab vocab_;
  const Ends ends_;
};

}  // namespace

Result<std::unique_ptr<GrammarCompiler>> GrammarCompiler::Create(const Tokenizer& tokenizer) {
  std::vector<std::string> tokens(tokenizer.size());
  std::vector<uint8_t> control(tokenizer.size());
  for (uint32_t id = 0; id < tokenizer.size(); ++id) {
    const auto token = static_cast<int32_t>(id);
    control[id] = tokenizer.IsControl(token);
    TS_ASSIGN_OR_RETURN(tokens[id], tokenizer.TokenBytes(token, /*spell_special=*/true));
  }
  // End tokens that the file calls normal ones stand for no text either.
  for (const int32_t end : tokenizer.end_tokens()) control[static_cast<size_t>(end)] = true;
  TS_ASSIGN_OR_RETURN(RustGrammarVocab vocab, NewRustGrammarVocab(tokens, control));
  return std::unique_ptr<GrammarCompiler>(std::make_unique<RustCompiler>(
      std::move(vocab), Ends{.tokens = tokenizer.size(), .end_tokens = tokenizer.end_tokens()}));
}

}  // namespace tinyserve
