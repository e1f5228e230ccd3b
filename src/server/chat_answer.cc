#include "server/chat_answer.h"

#include <sys/random.h>

#include <boost/json/array.hpp>
#include <utility>

#include "base/check.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

void Append(std::string_view name, const std::string& text, json::object* delta) {
  json::value& value = (*delta)[json::string_view(name.data(), name.size())];
  if (value.is_null()) value = json::string();
  value.get_string() += text;
}

// The delta's part of a call, made where there is none.
json::object& CallOf(uint32_t call, json::object* delta) {
  json::value& list = (*delta)["tool_calls"];
  if (list.is_null()) list = json::array();
  json::array& calls = list.get_array();
  if (calls.empty() || calls.back().at("index") != call)
    calls.push_back(json::object{{"index", call}, {"function", json::object()}});
  return calls.back().get_object();
}

}  // namespace

ChatAnswer::ChatAnswer(const AnswerForm& form) {
  if (!form.plain()) parser_ = std::make_unique<AnswerParser>(form);
}

std::vector<AnswerPart> ChatAnswer::Parts(std::string_view text, bool finished) {
  std::vector<AnswerPart> parts;
  if (!parser_) {
    if (!text.empty()) parts.push_back({AnswerPart::Kind::kText, 0, std::string(text)});
    return parts;
  }
  parts = parser_->Push(text);
  if (!finished) return parts;
  for (AnswerPart& part : parser_->Finish()) parts.push_back(std::move(part));
  return parts;
}

json::object ChatAnswer::Delta(std::string_view text, bool finished) {
  json::object delta;
  for (AnswerPart& part : Parts(text, finished)) {
    switch (part.kind) {
      case AnswerPart::Kind::kText:
        Append("content", part.text, &delta);
        break;
      case AnswerPart::Kind::kReasoning:
        Append("reasoning_content", part.text, &delta);
        break;
      case AnswerPart::Kind::kCall: {
        json::object& call = CallOf(part.call, &delta);
        call = {{"index", part.call},
                {"id", NewCallId()},
                {"type", "function"},
                {"function", {{"name", part.text}, {"arguments", ""}}}};
        break;
      }
      case AnswerPart::Kind::kArguments:
        Append("arguments", part.text, &CallOf(part.call, &delta).at("function").get_object());
        break;
    }
  }
  return delta;
}

json::object WholeMessage(json::object delta) {
  json::object message = {{"role", "assistant"}, {"content", nullptr}, {"refusal", nullptr}};
  const json::value* calls = delta.if_contains("tool_calls");
  if (const json::value* content = delta.if_contains("content")) {
    message["content"] = *content;
  } else if (calls == nullptr) {
    message["content"] = "";
  }
  if (const json::value* reasoning = delta.if_contains("reasoning_content"))
    message["reasoning_content"] = *reasoning;
  if (calls == nullptr) return message;
  json::array whole;
  for (const json::value& call : calls->as_array()) {
    json::object copy = call.as_object();
    copy.erase("index");
    whole.push_back(std::move(copy));
  }
  message["tool_calls"] = std::move(whole);
  return message;
}

std::string NewCallId() {
  static constexpr std::string_view kLetters =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  unsigned char bytes[9] = {};
  TS_CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes);
  std::string id;
  for (const unsigned char byte : bytes) id += kLetters[byte % kLetters.size()];
  return id;
}

}  // namespace tinyserve
