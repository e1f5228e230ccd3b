// Retrieval tasks: texts that hide facts in a long context and ask for them, made from a seed.
#ifndef TINYSERVE_TOOLS_RETRIEVAL_H_
#define TINYSERVE_TOOLS_RETRIEVAL_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "tinyserve/status.h"

namespace tinyserve {

enum class RetrievalTask : uint8_t {
  kPasskey,       // one number in a text, at a depth
  kKeyValue,      // many pairs and nothing else; one is asked for
  kMultiTurn,     // several facts in a text, asked for one after another in one conversation
  kMultiRequest,  // the same facts and questions, each question alone after the text
};

// "passkey", "key_value", "multi_turn", "multi_request".
const char* NameOf(RetrievalTask task);
std::vector<std::string> RetrievalTaskNames();
// Errors: kInvalidArgument.
Result<RetrievalTask> ParseRetrievalTask(const std::string& name);

// Tokens of the answer to one question: window tokens [first, first + count).
struct RetrievalAnswer {
  double depth;   // where the fact lies, 0 (begin) to 1 (end of the context)
  uint32_t turn;  // of the conversation
  uint32_t first, count;
};

struct RetrievalWindow {
  std::vector<int32_t> tokens;
  std::vector<RetrievalAnswer> answers;
};

struct RetrievalShape {
  uint32_t tokens;   // of a window, questions and answers included, and one more that follows
  uint32_t decoded;  // at the window's end: they hold all questions and answers
};

// Facts lie at these depths; a task of several facts has one at each.
std::span<const double> RetrievalDepths();

// `trials` windows for each depth (multi_turn: in all; multi_request: for each question). `prefix`
// stands at the beginning, filler comes from `text`. The same seed gives the same windows. Errors:
// kInvalidArgument (a text, or a shape, too short).
Result<std::vector<RetrievalWindow>> MakeRetrieval(RetrievalTask task, const RetrievalShape& shape,
                                                   uint32_t trials, uint64_t seed,
                                                   const Tokenizer& tokenizer,
                                                   std::span<const int32_t> prefix,
                                                   std::span<const int32_t> text);

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_RETRIEVAL_H_
