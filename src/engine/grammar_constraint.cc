#include "engine/grammar_constraint.h"

#include <algorithm>
#include <utility>

#include "engine/sampler.h"

namespace tinyserve {
namespace {

GrammarLanguage LanguageOf(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kRegex:
      return GrammarLanguage::kRegex;
    case GrammarKind::kLark:
      return GrammarLanguage::kLark;
    case GrammarKind::kJsonSchema:
      break;
  }
  return GrammarLanguage::kJsonSchema;
}

class GrammarConstraint : public TokenConstraint {
 public:
  explicit GrammarConstraint(std::unique_ptr<GrammarState> state) : state_(std::move(state)) {}
  Status Mask(std::span<uint32_t> bits) override { return state_->Mask(bits); }
  Status Accept(int32_t token) override { return state_->Accept(token); }

 private:
  std::unique_ptr<GrammarState> state_;
};

class GrammarForRequests : public Grammar {
 public:
  explicit GrammarForRequests(std::unique_ptr<CompiledGrammar> grammar)
      : grammar_(std::move(grammar)) {}
  Result<std::shared_ptr<TokenConstraint>> Start() const override {
    TS_ASSIGN_OR_RETURN(std::unique_ptr<GrammarState> state, grammar_->Start());
    return std::shared_ptr<TokenConstraint>(std::make_shared<GrammarConstraint>(std::move(state)));
  }

 private:
  std::unique_ptr<CompiledGrammar> grammar_;
};

}  // namespace

Result<std::shared_ptr<const Grammar>> Grammars::Compile(GrammarKind kind, std::string_view text) {
  const GrammarCompiler* compiler = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (compiler_ == nullptr) {
      TS_ASSIGN_OR_RETURN(compiler_, GrammarCompiler::Create(*tokenizer_));
    }
    compiler = compiler_.get();
  }
  TS_ASSIGN_OR_RETURN(std::unique_ptr<CompiledGrammar> compiled,
                      compiler->Compile(LanguageOf(kind), text));
  return std::shared_ptr<const Grammar>(std::make_shared<GrammarForRequests>(std::move(compiled)));
}

Status AllowedBy(TokenConstraint* constraint, std::span<uint32_t> allowed) {
  TS_RETURN_IF_ERROR(constraint->Mask(allowed));
  if (std::any_of(allowed.begin(), allowed.end(), [](uint32_t word) { return word != 0; }))
    return Status();
  return Status(Code::kInvalidArgument,
                "the grammar cannot be followed: no token of the vocabulary may come next");
}

Status Constrain(TokenConstraint* constraint, std::vector<uint32_t>* allowed,
                 std::span<float> logits) {
  allowed->assign((logits.size() + 31) / 32, 0);
  TS_RETURN_IF_ERROR(AllowedBy(constraint, *allowed));
  RuleOut(*allowed, logits);
  return Status();
}

}  // namespace tinyserve
