// Any request to any route: a line "METHOD target", a line with an Authorization, then the body. It
// is answered by JSON, a page or metrics, never by a 5xx but 503, whatever the engine then says.
#include <boost/json/parse.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "server/api_keys.h"
#include "server/http_text.h"
#include "server/metrics.h"
#include "server/service.h"
#include "server/testing.h"

namespace tinyserve {
namespace {

std::string_view TakeLine(std::string_view* text) {
  const size_t end = std::min(text->find('\n'), text->size());
  const std::string_view line = text->substr(0, end);
  text->remove_prefix(std::min(text->size(), end + 1));
  return line;
}

void CheckReply(const HttpReply& reply) {
  TS_CHECK(reply.status >= 200 && reply.status < 600);
  TS_CHECK(reply.status < 500 || reply.status == 503);
  TS_CHECK(!FormatHead(reply, {}, {}).empty());
  if (reply.content_type != "application/json" || reply.body.empty()) return;
  boost::json::error_code failed;
  boost::json::parse(reply.body, failed);
  TS_CHECK(!failed);
}

// Lets the engine answer what was asked of it: one token, and the end.
void Drive(FakeEngine* engine, HttpReply* reply, std::string_view text) {
  const auto end = text.size() % 2 == 0 ? FinishReason::kStop : FinishReason::kLength;
  std::string sent;
  for (size_t round = 0; !reply->work->Advance(&sent); ++round) {
    TS_CHECK(round < 10000);
    for (auto& [id, submitted] : engine->submitted) {
      if (submitted.finished) continue;
      if (submitted.request.max_tokens > 0) engine->Say(id, std::string(text.substr(0, 64)));
      engine->Finish(id, submitted.request.max_tokens == 0 ? FinishReason::kLength : end);
    }
  }
  if (reply->streams) {
    TS_CHECK(sent.ends_with("\n\n"));
  } else {
    CheckReply(reply->work->Whole());
  }
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  static const std::unique_ptr<Metrics> metrics = Metrics::Create("fake");
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string_view line = TakeLine(&rest);
  const size_t space = std::min(line.find(' '), line.size());
  const std::string_view target = line.substr(std::min(line.size(), space + 1));
  const std::optional<std::string> path = PathOfTarget(target);
  const std::optional<HeaderList> query = QueryOfTarget(target);
  if (!path || !query) return 0;
  HttpRequest request{.method = std::string(line.substr(0, space)), .path = *path, .query = *query};
  request.headers = {{"host", "localhost"}, {"authorization", std::string(TakeLine(&rest))}};
  ApiKeys keys;
  if (size % 3 == 0) keys.Set({"a", "b"});
  FakeEngine engine;
  ServiceOptions options;
  options.models = {"fake"};
  Service service(options, &keys, metrics.get());
  service.SetEngine(&engine);
  std::optional<HttpReply> refused = service.Refuse(&request);
  if (refused) {
    CheckReply(*refused);
    return 0;
  }
  request.body = rest;
  HttpReply reply = service.Handle(request);
  CheckReply(reply);
  if (reply.work != nullptr) Drive(&engine, &reply, rest);
  return 0;
}
