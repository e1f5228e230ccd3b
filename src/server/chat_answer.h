// The parts of an answer in the form of chat messages: content, reasoning_content, tool_calls.
#ifndef TINYSERVE_SERVER_CHAT_ANSWER_H_
#define TINYSERVE_SERVER_CHAT_ANSWER_H_

#include <boost/json/object.hpp>
#include <memory>
#include <string_view>
#include <vector>

#include "server/answer_parser.h"

namespace tinyserve {

class ChatAnswer {
 public:
  // A plain answer is given on as it comes.
  explicit ChatAnswer(const AnswerForm& form);

  // A stream's delta of what `text` completes, and at the answer's end, of all. May be empty.
  boost::json::object Delta(std::string_view text, bool finished);
  std::vector<AnswerPart> Parts(std::string_view text, bool finished);
  bool called() const { return parser_ && parser_->called(); }

 private:
  std::unique_ptr<AnswerParser> parser_;
};

// The message that one delta of a whole answer says.
boost::json::object WholeMessage(boost::json::object delta);

// Of a call: nine letters and digits, as the templates of one family require.
std::string NewCallId();

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CHAT_ANSWER_H_
