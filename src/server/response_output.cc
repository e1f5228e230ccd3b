#include "server/response_output.h"

#include <utility>

#include "server/chat_answer.h"
#include "server/reply_id.h"

namespace tinyserve {

namespace json = boost::json;
using Kind = AnswerPart::Kind;

void ResponseOutput::Add(const AnswerPart& part) {
  const Kind kind = part.kind == Kind::kArguments ? Kind::kCall : part.kind;
  if (!open_ || kind != kind_ || part.kind == Kind::kCall) {
    if (open_) Close(/*complete=*/true);
    Open(kind, part.text);
  }
  if (part.kind != Kind::kCall) Append(part.text);
}

void ResponseOutput::Finish(bool complete) {
  if (!open_ && items_.empty()) Open(Kind::kText, "");
  if (open_) Close(complete);
}

json::object ResponseOutput::Place(bool with_content) const {
  json::object place = {{"item_id", item_.at("id")}, {"output_index", items_.size()}};
  if (with_content) place["content_index"] = 0;
  return place;
}

json::object ResponseOutput::ContentPart() const {
  if (kind_ == Kind::kReasoning) return {{"type", "reasoning_text"}, {"text", text_}};
  return {{"type", "output_text"},
          {"text", text_},
          {"annotations", json::array()},
          {"logprobs", json::array()}};
}

void ResponseOutput::Open(Kind kind, const std::string& name) {
  open_ = true;
  kind_ = kind;
  text_.clear();
  if (is_call()) {
    item_ = {{"id", NewReplyId("fc_")},
             {"type", "function_call"},
             {"status", "in_progress"},
             {"call_id", NewCallId()},
             {"name", name},
             {"arguments", ""}};
  } else if (kind == Kind::kReasoning) {
    item_ = {{"id", NewReplyId("rs_")},
             {"type", "reasoning"},
             {"status", "in_progress"},
             {"summary", json::array()},
             {"content", json::array()}};
  } else {
    item_ = {{"id", NewReplyId("msg_")},
             {"type", "message"},
             {"status", "in_progress"},
             {"role", "assistant"},
             {"content", json::array()}};
  }
  Tell("response.output_item.added", {{"output_index", items_.size()}, {"item", item_}});
  if (is_call()) return;
  json::object event = Place(true);
  event["part"] = ContentPart();
  Tell("response.content_part.added", std::move(event));
}

void ResponseOutput::Append(const std::string& text) {
  text_ += text;
  json::object event = Place(!is_call());
  event["delta"] = text;
  if (is_call()) return Tell("response.function_call_arguments.delta", std::move(event));
  if (kind_ == Kind::kReasoning) return Tell("response.reasoning_text.delta", std::move(event));
  event["logprobs"] = json::array();
  Tell("response.output_text.delta", std::move(event));
}

void ResponseOutput::Close(bool complete) {
  json::object done = Place(!is_call());
  if (is_call()) {
    item_["arguments"] = text_;
    done["name"] = item_.at("name");
    done["arguments"] = text_;
    Tell("response.function_call_arguments.done", std::move(done));
  } else {
    item_["content"] = json::array{ContentPart()};
    done["text"] = text_;
    if (kind_ == Kind::kText) done["logprobs"] = json::array();
    Tell(kind_ == Kind::kReasoning ? "response.reasoning_text.done" : "response.output_text.done",
         std::move(done));
    json::object part = Place(true);
    part["part"] = ContentPart();
    Tell("response.content_part.done", std::move(part));
  }
  item_["status"] = complete ? "completed" : "incomplete";
  Tell("response.output_item.done", {{"output_index", items_.size()}, {"item", item_}});
  items_.push_back(std::move(item_));
  open_ = false;
}

}  // namespace tinyserve
