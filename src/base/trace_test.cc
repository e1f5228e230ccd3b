#include "base/trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

class TraceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = std::filesystem::temp_directory_path() / "tinyserve_trace_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = dir_ + "/trace.json";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  // The file's events; strict JSON, or the test fails.
  json::array Events() const {
    std::stringstream text;
    text << std::ifstream(path_).rdbuf();
    boost::system::error_code error;
    const json::value value = json::parse(text.str(), error);
    EXPECT_FALSE(error) << error.message();
    return value.is_array() ? value.as_array() : json::array();
  }

  std::string dir_, path_;
};

std::string NameOf(const json::value& event) { return std::string(event.at("name").as_string()); }

double NumberOf(const json::value& event, const char* key) {
  return event.at(key).to_number<double>();
}

TEST_F(TraceTest, SpansAreNestedAndCarryTheirArgs) {
  auto trace = Trace::Open(path_);
  ASSERT_TRUE(trace.ok());
  {
    const TraceScope step(trace->get(), TraceKind::kStep, 5, 2, 3);
    const TraceScope layer(trace->get(), TraceKind::kAttention, 7);
    const TraceScope nothing(nullptr, TraceKind::kPlan);
  }
  ASSERT_TRUE((*trace)->Close().ok());
  std::map<std::string, json::value> spans;
  for (const json::value& event : Events()) {
    if (event.at("ph").as_string() == "X") spans[NameOf(event)] = event;
  }
  ASSERT_EQ(spans.size(), 2u);
  const json::value &step = spans.at("step"), &layer = spans.at("attention");
  EXPECT_EQ(step.at("args"),
            (json::object{{"prompt_tokens", 5}, {"generated_tokens", 2}, {"sequences", 3}}));
  EXPECT_EQ(layer.at("args"), (json::object{{"layer", 7}}));
  EXPECT_LE(NumberOf(step, "ts"), NumberOf(layer, "ts"));
  EXPECT_GE(NumberOf(step, "ts") + NumberOf(step, "dur") + 1e-6,
            NumberOf(layer, "ts") + NumberOf(layer, "dur"));
}

TEST_F(TraceTest, ARequestIsPairsInOrderAndPhasesFollowEachOther) {
  auto trace = Trace::Open(path_);
  ASSERT_TRUE(trace.ok());
  const uint64_t now = NowNs();
  (*trace)->Add(TraceRequest{.id = 1,
                             .submitted_ns = now,
                             .started_ns = now + 1000,
                             .first_token_ns = now + 5000,
                             .finished_ns = now + 9000,
                             .prompt_tokens = 12,
                             .generated_tokens = 3,
                             .finish = "stop"});
  // Cancelled before anything ran of it, and in the middle of its prompt.
  (*trace)->Add(
      TraceRequest{.id = 2, .submitted_ns = now, .finished_ns = now + 10, .finish = "cancelled"});
  (*trace)->Add(TraceRequest{.id = 3,
                             .submitted_ns = now,
                             .started_ns = now + 1,
                             .finished_ns = now + 10,
                             .finish = "deadline"});
  ASSERT_TRUE((*trace)->Close().ok());
  std::map<int64_t, std::vector<std::string>> open, seen;
  std::map<int64_t, std::map<std::string, std::pair<double, double>>> times;
  for (const json::value& event : Events()) {
    const std::string phase(event.at("ph").as_string());
    if (phase != "b" && phase != "e") continue;
    const int64_t id = event.at("id").as_int64();
    if (phase == "b") {
      open[id].push_back(NameOf(event));
      seen[id].push_back(NameOf(event));
      times[id][NameOf(event)].first = NumberOf(event, "ts");
    } else {
      ASSERT_FALSE(open[id].empty());
      EXPECT_EQ(open[id].back(), NameOf(event));  // the innermost one ends first
      open[id].pop_back();
      times[id][NameOf(event)].second = NumberOf(event, "ts");
    }
  }
  for (const auto& [id, names] : open) EXPECT_TRUE(names.empty()) << id;
  EXPECT_EQ(seen[1], (std::vector<std::string>{"request 1", "queued", "prefill", "decode"}));
  EXPECT_EQ(seen[2], (std::vector<std::string>{"request 2", "queued"}));
  EXPECT_EQ(seen[3], (std::vector<std::string>{"request 3", "queued", "prefill"}));
  EXPECT_NEAR(times[1]["queued"].second, times[1]["prefill"].first, 1e-9);
  EXPECT_NEAR(times[1]["prefill"].second - times[1]["prefill"].first, 4, 1e-6);
  EXPECT_NEAR(times[1]["request 1"].second - times[1]["request 1"].first, 9, 1e-6);
}

TEST_F(TraceTest, LabelsOfAnyBytesStayJson) {
  auto trace = Trace::Open(path_);
  ASSERT_TRUE(trace.ok());
  const std::string label("a\"b\\c\n\x01\xff\xc3\xa9", 10);
  const char* kept = (*trace)->Keep(label);
  EXPECT_EQ((*trace)->Keep(label), kept);
  { const TraceScope scope(trace->get(), label, 4); }
  (*trace)->Add(TraceLoad{.at_ns = NowNs(), .running = 1, .waiting = 2, .blocks_used = 3});
  ASSERT_TRUE((*trace)->Close().ok());
  bool found = false, running = false;
  for (const json::value& event : Events()) {
    found |= NameOf(event) == "a\"b\\c?????";
    running |= NameOf(event) == "requests" &&
               event.at("args") == json::object{{"running", 1}, {"waiting", 2}};
  }
  EXPECT_TRUE(found);
  EXPECT_TRUE(running);
}

TEST_F(TraceTest, WhatFindsNoRoomIsCounted) {
  constexpr uint64_t kSpans = 100000;
  auto trace = Trace::Open(path_, /*pending_max=*/8);
  ASSERT_TRUE(trace.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (uint64_t i = 0; i < kSpans / 2; ++i)
        const TraceScope scope(trace->get(), TraceKind::kPlan);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto report = (*trace)->Close();
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->records + report->dropped, kSpans);
  EXPECT_GT(report->dropped, 0u);
  uint64_t spans = 0;
  const json::array events = Events();
  for (const json::value& event : events) spans += event.at("ph").as_string() == "X" ? 1 : 0;
  EXPECT_EQ(spans, report->records);
  EXPECT_EQ(events.back().at("args"),
            (json::object{{"records", report->records}, {"dropped", report->dropped}}));
  // What comes after the end is neither written nor missing: Close says the same again.
  (*trace)->Add(TraceSpan{});
  const auto again = (*trace)->Close();
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->records, report->records);
  EXPECT_EQ(again->dropped, report->dropped);
}

TEST_F(TraceTest, AnImpossiblePathIsAnErrorAtOnceAFullDiskAtTheEnd) {
  const auto none = Trace::Open(dir_ + "/missing/trace.json");
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.status().code(), Code::kIo);
  EXPECT_NE(none.status().message().find("missing/trace.json"), std::string::npos);

  auto full = Trace::Open("/dev/full");
  ASSERT_TRUE(full.ok());
  { const TraceScope scope(full->get(), TraceKind::kPlan); }
  for (int i = 0; i < 2; ++i) {
    const auto report = (*full)->Close();
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.status().code(), Code::kIo);
    EXPECT_NE(report.status().message().find("/dev/full"), std::string::npos);
    EXPECT_NE(report.status().message().find("space"), std::string::npos);
  }
}

}  // namespace
}  // namespace tinyserve
