// Grammars of src/text as constraints of requests.
#ifndef TINYSERVE_ENGINE_GRAMMAR_CONSTRAINT_H_
#define TINYSERVE_ENGINE_GRAMMAR_CONSTRAINT_H_

#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "text/grammar.h"
#include "text/tokenizer.h"
#include "tinyserve/engine.h"

namespace tinyserve {

// Compiles grammars for one tokenizer. What all of them share is made for the first: engines that
// compile none pay nothing. Any thread.
class Grammars {
 public:
  // `tokenizer` must outlive this.
  explicit Grammars(const Tokenizer* tokenizer) : tokenizer_(tokenizer) {}
  // As Engine::CompileGrammar.
  Result<std::shared_ptr<const Grammar>> Compile(GrammarKind kind, std::string_view text);

 private:
  const Tokenizer* tokenizer_;
  std::mutex mutex_;
  std::unique_ptr<GrammarCompiler> compiler_;  // made once, under mutex_
};

// allowed = the tokens that may come next, as TokenConstraint::Mask has them. `allowed`: all zero.
// Errors: the constraint's own; kInvalidArgument where it allows none at all.
Status AllowedBy(TokenConstraint* constraint, std::span<uint32_t> allowed);
// Rules out the tokens that the constraint does not allow: their logits become minus infinity.
// `allowed`: scratch. Errors: as AllowedBy.
Status Constrain(TokenConstraint* constraint, std::vector<uint32_t>* allowed,
                 std::span<float> logits);

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_GRAMMAR_CONSTRAINT_H_
