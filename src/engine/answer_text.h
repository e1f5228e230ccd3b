// Builds an answer's text from its tokens: whole characters only, stop strings found across token
// borders and cut off.
#ifndef TINYSERVE_ENGINE_ANSWER_TEXT_H_
#define TINYSERVE_ENGINE_ANSWER_TEXT_H_

#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tinyserve {

class AnswerText {
 public:
  explicit AnswerText(std::vector<std::string> stop) : stop_(std::move(stop)) {}

  // Text that may be shown now. What could still become a stop string is held back.
  std::string Push(std::string_view token_bytes);
  // True once a stop string was found; the text before it has been returned, the rest is dropped.
  bool stopped() const { return stopped_; }
  // What was held back, at the end of an answer (empty after a stop string).
  std::string Finish();

 private:
  std::string Release();

  std::vector<std::string> stop_;
  Utf8Stream characters_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_ANSWER_TEXT_H_
