// POST /v1/responses, and what may be asked of a response afterwards.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>
#include <charconv>
#include <ctime>
#include <memory>
#include <utility>

#include "server/chat_answer.h"
#include "server/chat_prompt.h"
#include "server/generation_reply.h"
#include "server/reply_id.h"
#include "server/response_items.h"
#include "server/response_output.h"
#include "server/response_store.h"
#include "server/routes.h"
#include "server/sse.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr std::string_view kResponses = "/v1/responses/";

// What a response was asked with, for the work that answers it.
struct Asked {
  uint64_t owner;
  bool store, stream;
  json::array input;     // items
  json::array messages;  // all before the answer, without instructions
  json::object echo;
  uint32_t prompt_tokens;
  uint32_t json_depth_max;
};

// Parts of one text or of one call's arguments become one: a token is one event.
std::vector<AnswerPart> Joined(std::vector<AnswerPart> parts) {
  std::vector<AnswerPart> joined;
  for (AnswerPart& part : parts) {
    const bool goes_on =
        !joined.empty() && joined.back().kind == part.kind && part.kind != AnswerPart::Kind::kCall;
    if (goes_on) {
      joined.back().text += part.text;
    } else {
      joined.push_back(std::move(part));
    }
  }
  return joined;
}

class ResponseWork : public ReplyWork {
 public:
  ResponseWork(const Service& service, std::unique_ptr<Generation> generation,
               const AnswerForm& form, Asked asked)
      : store_(service.responses()),
        generation_(std::move(generation)),
        answer_(form),
        asked_(std::move(asked)),
        output_(asked_.stream
                    ? ResponseOutput::Emit([this](std::string_view type, json::object event) {
                        Tell(type, std::move(event));
                      })
                    : ResponseOutput::Emit()) {
    response_ = {{"id", NewReplyId("resp_")},
                 {"object", "response"},
                 {"created_at", std::time(nullptr)},
                 {"status", "in_progress"},
                 {"error", nullptr},
                 {"incomplete_details", nullptr},
                 {"model", service.options().models.front()},
                 {"output", json::array()},
                 {"usage", nullptr}};
    for (const auto& member : asked_.echo) response_[member.key()] = member.value();
    store_->Begin(asked_.owner, id(), {ToJson(response_), ToJson(asked_.input), ""},
                  [cancel = generation_->canceller()] { cancel(); });
    Tell("response.created", {{"response", response_}});
    Tell("response.in_progress", {{"response", response_}});
  }
  ~ResponseWork() override {
    if (!ended_) End("cancelled");  // the client has left, or the server stops
  }
  ResponseWork(const ResponseWork&) = delete;
  ResponseWork& operator=(const ResponseWork&) = delete;

  // As far as it has come.
  std::string Json() const { return ToJson(response_); }
  void SetWake(Wake wake) override { generation_->SetWake(std::move(wake)); }
  bool Advance(std::string* out) override {
    for (const Arrival& arrival : generation_->Take()) Take(arrival.event);
    if (generation_->overflowed() && !ended_) Fail(SlowReaderError());
    out->append(std::exchange(events_, {}));
    return ended_;
  }
  HttpReply Whole() override {
    if (error_) return ErrorReply(*error_);
    HttpReply reply;
    reply.body = Json();
    return reply;
  }

 private:
  std::string id() const { return std::string(std::string_view(response_.at("id").as_string())); }

  void Tell(std::string_view type, json::object event) {
    if (!asked_.stream) return;
    event["type"] = type;
    event["sequence_number"] = sequence_++;
    AppendNamedEvent(type, ToJson(event), &events_);
  }

  void Take(const TokenEvent& event) {
    if (ended_) return;
    const bool finished = event.kind == TokenEvent::Kind::kFinished;
    for (const AnswerPart& part : Joined(answer_.Parts(event.text, finished))) output_.Add(part);
    if (!finished) {
      ++tokens_;
      if (output_.reasons()) ++reasoning_tokens_;
      return;
    }
    response_["usage"] = UsageOf(event.usage);
    if (event.finish == FinishReason::kError || event.finish == FinishReason::kDeadline)
      return Fail(ErrorOfFinish(event));
    const bool complete = event.finish == FinishReason::kStop;
    output_.Finish(complete);
    if (complete) return End("completed");
    if (event.finish == FinishReason::kCancelled) return End("cancelled");
    response_["incomplete_details"] = {{"reason", "max_output_tokens"}};
    End("incomplete");
  }

  json::object UsageOf(const Usage& usage) const {
    return {{"input_tokens", asked_.prompt_tokens},
            {"input_tokens_details", {{"cached_tokens", usage.cached_tokens}}},
            {"output_tokens", tokens_},
            {"output_tokens_details", {{"reasoning_tokens", reasoning_tokens_}}},
            {"total_tokens", asked_.prompt_tokens + tokens_},
            {"tinyserve", OwnUsageJson(usage)}};
  }

  void Fail(ApiError error) {
    error_ = std::move(error);
    response_["error"] = {{"code", error_->code.empty() ? "server_error" : error_->code},
                          {"message", error_->message}};
    End("failed");
  }

  void End(const char* status) {
    ended_ = true;
    response_["status"] = status;
    response_["output"] = output_.items();
    if (status == std::string_view("completed")) response_["completed_at"] = std::time(nullptr);
    json::array messages = std::move(asked_.messages);
    for (json::value& message : MessagesOfOutput(output_.items(), asked_.json_depth_max))
      messages.push_back(std::move(message));
    store_->End(id(), {ToJson(response_), ToJson(asked_.input), ToJson(messages)}, asked_.store);
    // The API has no event for one that was cancelled.
    const bool cancelled = status == std::string_view("cancelled");
    Tell(fmt::format("response.{}", cancelled ? "incomplete" : status), {{"response", response_}});
  }

  ResponseStore* const store_;
  std::unique_ptr<Generation> generation_;
  ChatAnswer answer_;
  Asked asked_;
  ResponseOutput output_;
  json::object response_;
  std::string events_;  // not sent yet
  uint64_t sequence_ = 0;
  uint32_t tokens_ = 0, reasoning_tokens_ = 0;
  bool ended_ = false;
  std::optional<ApiError> error_;
};

ApiError NoSuchResponse(std::string_view id, std::string param) {
  ApiError error = BadField(std::move(param), fmt::format("there is no response '{}'", id));
  error.status = 404;
  error.code = "not_found";
  return error;
}

// The id in a path /v1/responses/ID, which may go on with `rest`.
std::string_view IdOf(const HttpRequest& request, std::string_view rest = "") {
  const std::string_view id = std::string_view(request.path).substr(kResponses.size());
  return id.substr(0, id.size() - rest.size());
}

HttpReply JsonReply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

// The messages before the answer: those of the response that it goes on from, then its own. They
// become the request's, with its instructions before them.
std::optional<json::array> Continue(const Service& service, const HttpRequest& http,
                                    ResponseRequest* request, std::optional<ApiError>* error) {
  json::array messages;
  if (!request->previous.empty()) {
    const auto previous = service.responses()->Find(http.client, request->previous);
    if (previous == nullptr || previous->messages.empty()) {
      *error = previous == nullptr
                   ? NoSuchResponse(request->previous, "previous_response_id")
                   : BadField("previous_response_id", "'previous_response_id' still runs");
      return std::nullopt;
    }
    messages = json::parse(previous->messages).as_array();
  }
  Conversation& conversation = request->conversation;
  messages.insert(messages.end(), conversation.messages.begin(), conversation.messages.end());
  if (messages.size() > service.limits().messages_max) {
    *error = BadField("previous_response_id",
                      fmt::format("the conversation has {} messages: at most {} are allowed",
                                  messages.size(), service.limits().messages_max));
    return std::nullopt;
  }
  conversation.messages = messages;
  if (!request->instructions.empty()) {
    conversation.messages.insert(
        conversation.messages.begin(),
        json::object{{"role", "system"}, {"content", request->instructions}});
  }
  return messages;
}

}  // namespace

HttpReply Respond(const Service& service, const HttpRequest& http) {
  Engine* engine = service.engine();
  if (engine == nullptr) return ErrorReply(Unavailable("the model is still loading"));
  std::optional<ApiError> error;
  std::optional<ResponseRequest> request =
      ParseResponseRequest(http.body, service.limits(), &error);
  if (!request) return ErrorReply(*error);
  std::optional<json::array> messages = Continue(service, http, &*request, &error);
  if (!messages) return ErrorReply(*error);
  GenerationOptions& options = request->options;
  Result<ChatPrompt> prompt =
      PromptOf(*engine, service.options().parsers, request->conversation, options.add_special);
  if (!prompt.ok()) {
    ApiError refused = ErrorOf(prompt.status());
    if (refused.param.empty()) refused.param = "input";
    return ErrorReply(refused);
  }
  Apply(*prompt, &options);
  service.SetOwner(http, options.cache_salt, &options.engine);
  Asked asked{.owner = http.client,
              .store = request->store,
              .stream = options.stream,
              .input = std::move(request->input),
              .messages = *std::move(messages),
              .echo = std::move(request->echo),
              .prompt_tokens = static_cast<uint32_t>(prompt->tokens.size()),
              .json_depth_max = service.limits().json_depth_max};
  std::unique_ptr<Generation> generation =
      Generation::Start(engine, service.metrics(), options, {std::move(prompt->tokens)}, &error);
  if (generation == nullptr) {
    if (error->param == "prompt") error->param = "input";
    if (error->param == "max_tokens") error->param = "max_output_tokens";
    return ErrorReply(*error);
  }
  auto work = std::make_unique<ResponseWork>(service, std::move(generation), prompt->form,
                                             std::move(asked));
  if (!request->background) return GenerationHttpReply(std::move(work), options.stream);
  HttpReply begun = JsonReply(work->Json());
  service.background()->Run(std::move(work));
  return begun;
}

HttpReply OneResponse(const Service& service, const HttpRequest& http) {
  for (const auto& [name, value] : http.query) {
    if (name == "stream" && (value == "false" || value.empty())) continue;
    return ErrorReply(
        BadField(name, fmt::format("the parameter '{}' is not supported by this server", name)));
  }
  const auto stored = service.responses()->Find(http.client, IdOf(http));
  if (stored == nullptr) return ErrorReply(NoSuchResponse(IdOf(http), "response_id"));
  return JsonReply(stored->response);
}

HttpReply DeleteResponse(const Service& service, const HttpRequest& http) {
  // Of one that runs in the background nobody would ever see more.
  const auto stored = service.responses()->Find(http.client, IdOf(http));
  if (stored != nullptr && json::parse(stored->response).at("background") == true)
    service.responses()->Cancel(http.client, IdOf(http));
  if (!service.responses()->Erase(http.client, IdOf(http)))
    return ErrorReply(NoSuchResponse(IdOf(http), "response_id"));
  return JsonReply(
      ToJson(json::object{{"id", IdOf(http)}, {"object", "response"}, {"deleted", true}}));
}

HttpReply CancelResponse(const Service& service, const HttpRequest& http) {
  const std::string_view id = IdOf(http, "/cancel");
  const auto stored = service.responses()->Find(http.client, id);
  if (stored == nullptr) return ErrorReply(NoSuchResponse(id, "response_id"));
  if (!service.responses()->Cancel(http.client, id))
    return ErrorReply(BadField("response_id", "the response has ended: it cannot be cancelled"));
  json::value response = json::parse(stored->response);
  response.as_object()["status"] = "cancelled";
  return JsonReply(ToJson(response));
}

HttpReply ResponseInput(const Service& service, const HttpRequest& http) {
  constexpr uint32_t kItemsMax = 100;
  uint32_t limit = 20;
  std::string after, order = "desc";
  for (const auto& [name, value] : http.query) {
    if (name == "limit") {
      const char* end = value.data() + value.size();
      const auto [last, failed] = std::from_chars(value.data(), end, limit);
      if (failed == std::errc() && last == end && limit >= 1 && limit <= kItemsMax) continue;
      return ErrorReply(
          BadField("limit", fmt::format("'limit' must be a number from 1 to {}", kItemsMax)));
    }
    if (name == "after") {
      after = value;
    } else if (name == "order") {
      if (value != "asc" && value != "desc")
        return ErrorReply(BadField("order", "'order' is none of asc, desc"));
      order = value;
    } else {
      return ErrorReply(
          BadField(name, fmt::format("the parameter '{}' is not supported by this server", name)));
    }
  }
  const std::string_view id = IdOf(http, "/input_items");
  const auto stored = service.responses()->Find(http.client, id);
  if (stored == nullptr) return ErrorReply(NoSuchResponse(id, "response_id"));
  json::array items = json::parse(stored->input).as_array();
  if (order == "desc") std::reverse(items.begin(), items.end());
  auto first = items.begin();
  if (!after.empty()) {
    first = std::find_if(items.begin(), items.end(), [&](const json::value& item) {
      return item.at("id").as_string() == after;
    });
    if (first == items.end())
      return ErrorReply(BadField("after", fmt::format("there is no item '{}'", after)));
    ++first;
  }
  const auto last = first + std::min<ptrdiff_t>(limit, items.end() - first);
  json::array page(first, last);
  const json::value none(nullptr);
  return JsonReply(ToJson(json::object{{"object", "list"},
                                       {"first_id", page.empty() ? none : page.front().at("id")},
                                       {"last_id", page.empty() ? none : page.back().at("id")},
                                       {"has_more", last != items.end()},
                                       {"data", std::move(page)}}));
}

}  // namespace tinyserve
