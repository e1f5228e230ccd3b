// Splits an answer into its reasoning, its text and its calls of tools, while it is generated.
#ifndef TINYSERVE_SERVER_ANSWER_PARSER_H_
#define TINYSERVE_SERVER_ANSWER_PARSER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/call_reader.h"
#include "server/tool_format.h"

namespace tinyserve {

struct AnswerForm {
  std::optional<ToolFormat> tools;  // nothing: text alone
  std::vector<std::string> tool_names;
  bool parallel_calls = true;  // else calls after the first are left out
  bool in_call = false;        // the prompt ended in CallOpener: the answer begins after it
  bool reasoning = false;      // <think>…</think> at the beginning is reasoning
  bool in_reasoning = false;   // the prompt ended in <think>

  bool plain() const { return !tools && !reasoning; }
};

// What is no call of one of the tools stays text, its markers included.
class AnswerParser {
 public:
  explicit AnswerParser(AnswerForm form);
  AnswerParser(const AnswerParser&) = delete;  // its reader points into it
  AnswerParser& operator=(const AnswerParser&) = delete;

  // Parts that `text` completes. What may yet become a marker is held back.
  std::vector<AnswerPart> Push(std::string_view text);
  // What was held back.
  std::vector<AnswerPart> Finish();
  // Whether it has given out a call.
  bool called() const { return called_; }

 private:
  enum class State : uint8_t { kStart, kReasoning, kText, kCall, kAfterCall };

  bool Step(bool end);  // false: more text is needed
  bool StepStart(bool end);
  bool StepReasoning(bool end);
  bool StepText(bool end);
  bool StepCall(bool end);
  bool StepAfterCall(bool end);
  std::string_view Held() const { return std::string_view(held_).substr(held_from_); }
  void Drop(size_t bytes) { held_from_ += bytes; }
  void Give(AnswerPart::Kind kind, std::string_view text);
  void BeginCall(std::string_view opener);
  bool BeginsBareCall(bool end, bool* wait);

  const AnswerForm form_;
  State state_ = State::kStart;
  std::string held_;  // not given out yet, from held_from_ on
  size_t held_from_ = 0;
  std::vector<AnswerPart> out_;
  std::optional<CallReader> reader_;
  std::string opener_;  // of the call that is read, which is text should it be none
  uint32_t calls_ = 0;
  bool called_ = false;
  bool reasoning_begun_ = false;  // some of it was given out
  bool skip_space_ = false;       // text after reasoning begins with its first word
  bool text_begun_ = false;       // a bare call is a whole answer's
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_ANSWER_PARSER_H_
