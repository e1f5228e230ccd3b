// An answer as the output items of a response, and the events by which a stream tells of them.
#ifndef TINYSERVE_SERVER_RESPONSE_OUTPUT_H_
#define TINYSERVE_SERVER_RESPONSE_OUTPUT_H_

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "server/answer_parser.h"

namespace tinyserve {

// One item after another: reasoning, a message, calls of functions.
class ResponseOutput {
 public:
  // An event without its "type" and "sequence_number".
  using Emit = std::function<void(std::string_view type, boost::json::object event)>;

  // `emit` may be empty.
  explicit ResponseOutput(Emit emit) : emit_(std::move(emit)) {}

  void Add(const AnswerPart& part);
  // No more parts come. An answer that said nothing is an empty message. `complete`: it was not cut
  // off in its last item.
  void Finish(bool complete);

  const boost::json::array& items() const { return items_; }
  bool reasons() const { return open_ && kind_ == AnswerPart::Kind::kReasoning; }

 private:
  void Open(AnswerPart::Kind kind, const std::string& name);
  void Append(const std::string& text);
  void Close(bool complete);
  bool is_call() const { return kind_ == AnswerPart::Kind::kCall; }
  // The open item's part of its content, with all of its text.
  boost::json::object ContentPart() const;
  // What every event of the open item says of it.
  boost::json::object Place(bool with_content) const;
  void Tell(std::string_view type, boost::json::object event) {
    if (emit_) emit_(type, std::move(event));
  }

  Emit emit_;
  boost::json::array items_;  // closed ones
  bool open_ = false;
  AnswerPart::Kind kind_ = AnswerPart::Kind::kText;  // of the open item
  boost::json::object item_;                         // the open one, without content
  std::string text_;                                 // its text, or its arguments
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_RESPONSE_OUTPUT_H_
