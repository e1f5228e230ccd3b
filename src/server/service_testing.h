// The service before an engine of which every event is a test's own.
#ifndef TINYSERVE_SERVER_SERVICE_TESTING_H_
#define TINYSERVE_SERVER_SERVICE_TESTING_H_

#include <gtest/gtest.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <memory>
#include <string>
#include <vector>

#include "server/http_text.h"
#include "server/service.h"
#include "server/testing.h"

namespace tinyserve {

class ServiceTest : public testing::Test {
 protected:
  ServiceTest() {
    ServiceOptions options;
    options.models = {"fake", "alias"};
    options.config_json = R"({"port": 1})";
    options.version = "9.9";
    options.selectors = {"full", "box"};
    options.origins.cors = {"https://a.example"};
    service_ = std::make_unique<Service>(options, &keys_, metrics_.get());
    service_->SetEngine(&engine_);
  }

  HttpReply Ask(const std::string& method, const std::string& path, const std::string& body = "",
                HeaderList headers = {}) {
    HttpRequest request{.method = method,
                        .path = *PathOfTarget(path),
                        .query = *QueryOfTarget(path),
                        .headers = std::move(headers)};
    request.headers.emplace_back("host", "localhost:8080");
    std::optional<HttpReply> refused = service_->Refuse(&request);
    if (refused) return *std::move(refused);
    request.body = body;
    return service_->Handle(request);
  }
  HttpReply Post(const std::string& path, const std::string& body) {
    return Ask("POST", path, body);
  }
  boost::json::object GetJson(const std::string& path) {
    return boost::json::parse(Ask("GET", path).body).as_object();
  }

  // What a finished reply says.
  static boost::json::object Whole(HttpReply* reply) {
    std::string none;
    EXPECT_TRUE(reply->work->Advance(&none));
    EXPECT_EQ(none, "");
    HttpReply whole = reply->work->Whole();
    EXPECT_EQ(whole.status, 200) << whole.body;
    return boost::json::parse(whole.body).as_object();
  }

  // Data of the events that have come since the last call.
  static std::vector<std::string> Events(HttpReply* reply, bool done) {
    std::string text;
    EXPECT_EQ(reply->work->Advance(&text), done);
    std::vector<std::string> events;
    while (!text.empty()) {
      const size_t end = text.find("\n\n");
      EXPECT_EQ(text.substr(0, 6), "data: ");
      events.push_back(text.substr(6, end - 6));
      text.erase(0, end + 2);
    }
    return events;
  }
  static boost::json::object Choice(const std::string& event) {
    return boost::json::parse(event).at("choices").at(0).as_object();
  }

  FakeEngine engine_;
  ApiKeys keys_;
  std::unique_ptr<Metrics> metrics_ = Metrics::Create("fake");
  std::unique_ptr<Service> service_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_SERVICE_TESTING_H_
