#include "server/http_text.h"

#include <gtest/gtest.h>

#include "server/api_keys.h"
#include "server/request_origin.h"
#include "server/sse.h"

namespace tinyserve {
namespace {

TEST(HttpDate, IsTheStandardsForm) {
  EXPECT_EQ(HttpDate(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");
  EXPECT_EQ(HttpDate(0), "Thu, 01 Jan 1970 00:00:00 GMT");
}

TEST(HttpText, HeadTellsHowTheBodyEnds) {
  HttpReply reply;
  reply.headers = {{"X-A", "b\r\nX-Injected: 1"}};
  EXPECT_EQ(FormatHead(reply, {{"X-Request-Id", "i"}}, {.content_bytes = 3}),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: i\r\n"
            "X-A: b  X-Injected: 1\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n");
  const std::string stream =
      FormatHead(reply, {}, {.content_bytes = {}, .chunked = true, .keep_alive = false});
  EXPECT_NE(stream.find("Transfer-Encoding: chunked\r\n"), std::string::npos);
  EXPECT_NE(stream.find("Connection: close\r\n"), std::string::npos);
  EXPECT_EQ(stream.find("Content-Length"), std::string::npos);
}

TEST(HttpText, ChunksCarryTheirLength) {
  EXPECT_EQ(FormatChunk("abc"), "3\r\nabc\r\n");
  EXPECT_EQ(FormatChunk(std::string(300, 'x')).substr(0, 5), "12c\r\n");
}

TEST(HttpText, Targets) {
  EXPECT_EQ(PathOfTarget("/v1/models?limit=1"), "/v1/models");
  EXPECT_EQ(PathOfTarget("http://host:1/a"), "/a");
  EXPECT_EQ(PathOfTarget("http://host"), "/");
  EXPECT_EQ(PathOfTarget("/v1/models/a%2Fb"), "/v1/models/a/b");
  for (const char* wrong : {"", "*", "a", "/%", "/%2", "/%zz", "/%00", "/%0d%0a", "host:80"})
    EXPECT_FALSE(PathOfTarget(wrong)) << wrong;
  EXPECT_EQ(*QueryOfTarget("/a?limit=1&after=x%2Fy+z&&flag#b?c=d"),
            (HeaderList{{"limit", "1"}, {"after", "x/y z"}, {"flag", ""}}));
  EXPECT_TRUE(QueryOfTarget("/a")->empty());
  for (const char* wrong : {"/a?b=%", "/a?b=%0a", "/a?%zz=1"})
    EXPECT_FALSE(QueryOfTarget(wrong)) << wrong;
  std::string many = "/a?";
  for (int i = 0; i < 65; ++i) many += "x=1&";
  EXPECT_FALSE(QueryOfTarget(many));
}

TEST(HttpText, IdsThatMayBeRepeated) {
  EXPECT_TRUE(IsPlainId("req-1_a.b:c"));
  for (const std::string& wrong : {std::string(), std::string("a b"), std::string("a\n"),
                                   std::string("\xc3\xa9"), std::string(129, 'a')})
    EXPECT_FALSE(IsPlainId(wrong)) << wrong;
}

TEST(Sse, EveryLineBecomesAField) {
  std::string out;
  AppendEvent("a", &out);
  AppendEvent("b\nc\r\nd\re", &out);
  EXPECT_EQ(out, "data: a\n\ndata: b\ndata: c\ndata: d\ndata: e\n\n");
}

TEST(ApiKeys, ParseAndFind) {
  const auto parsed = ParseApiKeys("# staff\n  alpha \r\n\nbeta");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, (std::vector<std::string>{"alpha", "beta"}));
  EXPECT_FALSE(ParseApiKeys("a b").ok());
  EXPECT_FALSE(ParseApiKeys("\xc3\xa9").ok());
  EXPECT_FALSE(ParseApiKeys(std::string(513, 'a')).ok());
  EXPECT_NE(ParseApiKeys("ok\nno good").status().message().find("line 2"), std::string::npos);
  ApiKeys keys;
  EXPECT_TRUE(keys.empty());
  keys.Set(*parsed);
  const auto alpha = keys.Find("alpha");
  ASSERT_TRUE(alpha.has_value());
  EXPECT_NE(*alpha, *keys.Find("beta"));
  for (const char* wrong : {"", "alph", "alphaa", "Alpha", "alphb"})
    EXPECT_FALSE(keys.Find(wrong)) << wrong;
  keys.Set({"gamma", "alpha"});
  EXPECT_EQ(keys.Find("alpha"), alpha);
  EXPECT_FALSE(keys.Find("beta"));
}

TEST(ApiKeys, Bearer) {
  EXPECT_EQ(BearerKey("Bearer k"), "k");
  EXPECT_EQ(BearerKey("bearer  k "), "k");
  EXPECT_FALSE(BearerKey(""));
  EXPECT_FALSE(BearerKey("Bearer"));
  EXPECT_FALSE(BearerKey("Basic abc"));
}

TEST(RequestOrigin, OnlyNamesOfThisMachineReachALoopbackListener) {
  const OriginRules rules{.loopback = true, .hosts = {"box.lan"}, .cors = {}};
  for (const char* fine :
       {"localhost", "LocalHost:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "box.lan:8080"})
    EXPECT_TRUE(HostAllowed(rules, fine)) << fine;
  for (const char* wrong : {"", "evil.com", "127.0.0.1.evil.com", "localhost.evil.com", "[::2]",
                            "1127.0.0.1", "evil.com@localhost", "127.evil", "192.168.0.1"})
    EXPECT_FALSE(HostAllowed(rules, wrong)) << wrong;
  const OriginRules open{.loopback = false, .hosts = {}, .cors = {}};
  EXPECT_TRUE(HostAllowed(open, "any.example"));
  const OriginRules named{.loopback = false, .hosts = {"a.example"}, .cors = {}};
  EXPECT_TRUE(HostAllowed(named, "a.example"));
  EXPECT_FALSE(HostAllowed(named, "localhost"));
}

TEST(RequestOrigin, PagesOfOthersAreNotServed) {
  const OriginRules rules{.loopback = true, .hosts = {}, .cors = {"https://a.example"}};
  EXPECT_TRUE(OriginAllowed(rules, "", "localhost:1"));
  EXPECT_TRUE(OriginAllowed(rules, "http://localhost:1", "localhost:1"));
  EXPECT_TRUE(OriginAllowed(rules, "https://a.example", "localhost:1"));
  for (const char* wrong : {"null", "http://localhost:2", "http://a.example", "https://b.example"})
    EXPECT_FALSE(OriginAllowed(rules, wrong, "localhost:1")) << wrong;
  EXPECT_TRUE(CorsAllowed({.loopback = true, .hosts = {}, .cors = {"*"}}, "null"));
}

}  // namespace
}  // namespace tinyserve
