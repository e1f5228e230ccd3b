#include "tools/retrieval.h"

#include <gtest/gtest.h>

#include <set>

namespace tinyserve {
namespace {

// A token is a byte.
class Bytes : public Tokenizer {
 public:
  Result<std::vector<int32_t>> Encode(std::string_view text, bool, bool) const override {
    return std::vector<int32_t>(text.begin(), text.end());
  }
  Result<std::string> TokenBytes(int32_t id, bool) const override {
    return std::string(1, static_cast<char>(id));
  }
  Result<std::string> Decode(std::span<const int32_t> ids, bool) const override {
    return std::string(ids.begin(), ids.end());
  }
  uint32_t size() const override { return 256; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return -1; }
  bool IsControl(int32_t) const override { return false; }
  int32_t FindToken(std::string_view) const override { return -1; }
  const std::vector<int32_t>& end_tokens() const override { return none_; }

 private:
  std::vector<int32_t> none_;
};

constexpr RetrievalShape kShape = {.tokens = 2000, .decoded = 600};

Result<std::vector<RetrievalWindow>> Make(RetrievalTask task, uint32_t trials = 3,
                                          RetrievalShape shape = kShape, uint64_t seed = 1) {
  const std::vector<int32_t> prefix = {'^'}, text(4000, '~');
  return MakeRetrieval(task, shape, trials, seed, Bytes(), prefix, text);
}

std::string TextOf(const RetrievalWindow& window, const RetrievalAnswer& answer) {
  const auto first = window.tokens.begin() + answer.first;
  return {first, first + answer.count};
}

TEST(Retrieval, AnswersStandInTheirContextAtTheirDepth) {
  for (const std::string& name : RetrievalTaskNames()) {
    const RetrievalTask task = *ParseRetrievalTask(name);
    EXPECT_EQ(NameOf(task), name);
    const auto windows = Make(task);
    ASSERT_TRUE(windows.ok()) << windows.status().message();
    EXPECT_EQ(windows->size(), task == RetrievalTask::kMultiTurn ? 3u : 15u);
    std::multiset<double> depths;
    std::set<std::string> values;
    for (const RetrievalWindow& window : *windows) {
      ASSERT_EQ(window.tokens.size(), kShape.tokens + 1);
      EXPECT_EQ(window.tokens[0], '^');
      const std::string text(window.tokens.begin(), window.tokens.end());
      EXPECT_EQ(window.answers.size(), task == RetrievalTask::kMultiTurn ? 5u : 1u);
      for (const RetrievalAnswer& answer : window.answers) {
        const std::string value = TextOf(window, answer);
        ASSERT_EQ(value.size(), 6u);  // a space and five digits
        EXPECT_GE(answer.first, kShape.tokens - kShape.decoded + 1);
        // The fact is stated once, before the question, about where it should be.
        const size_t stated = text.find(value);
        ASSERT_LT(stated, answer.first);
        EXPECT_NEAR(static_cast<double>(stated), answer.depth * kShape.tokens, 500) << name;
        depths.insert(answer.depth);
        values.insert(value);
      }
    }
    for (const double depth : RetrievalDepths()) EXPECT_EQ(depths.count(depth), 3u) << name;
    EXPECT_GE(values.size(), 14u);  // each trial and fact has a value of its own
  }
}

TEST(Retrieval, TurnsAndRequestsAskTheSameOfTheSameFacts) {
  const auto turns = *Make(RetrievalTask::kMultiTurn, 2);
  const auto requests = *Make(RetrievalTask::kMultiRequest, 2);
  for (uint32_t trial = 0; trial < 2; ++trial) {
    for (uint32_t i = 0; i < 5; ++i) {
      const RetrievalWindow& request = requests[trial * 5 + i];
      EXPECT_EQ(turns[trial].answers[i].turn, i);
      EXPECT_EQ(request.answers[0].turn, i);
      EXPECT_EQ(TextOf(turns[trial], turns[trial].answers[i]), TextOf(request, request.answers[0]));
    }
  }
}

TEST(Retrieval, TheSeedDecides) {
  for (const RetrievalTask task : {RetrievalTask::kPasskey, RetrievalTask::kKeyValue}) {
    const auto one = *Make(task), same = *Make(task), other = *Make(task, 3, kShape, 2);
    for (size_t w = 0; w < one.size(); ++w) {
      EXPECT_EQ(one[w].tokens, same[w].tokens);
      EXPECT_NE(one[w].tokens, other[w].tokens);
    }
  }
}

TEST(Retrieval, WhatDoesNotFitIsRefused) {
  const auto message = [](RetrievalTask task, RetrievalShape shape) {
    const auto made = Make(task, 1, shape);
    EXPECT_EQ(made.status().code(), Code::kInvalidArgument);
    return made.status().message();
  };
  EXPECT_NE(message(RetrievalTask::kPasskey, {.tokens = 2000, .decoded = 30}).find("--score"),
            std::string::npos);
  EXPECT_NE(message(RetrievalTask::kPasskey, {.tokens = 5000, .decoded = 600}).find("it has 4000"),
            std::string::npos);
  EXPECT_NE(
      message(RetrievalTask::kMultiTurn, {.tokens = 500, .decoded = 500}).find("context of 500"),
      std::string::npos);
  EXPECT_FALSE(ParseRetrievalTask("needle").ok());
}

}  // namespace
}  // namespace tinyserve
