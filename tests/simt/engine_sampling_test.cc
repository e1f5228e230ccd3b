// What the device draws under every wish of a request, by the public API: the tokens and
// log-probabilities that the host's sampler makes of the same device's logits.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/random.h"
#include "engine/engine_impl.h"
#include "tests/simt/engine_testing.h"

namespace tinyserve {
namespace {

// What may come follows from the token before: a mask of the wrong step is found.
class Thirds : public TokenConstraint {
 public:
  // What happens at the mask after so many tokens; 0: nothing does.
  enum class Fault { kFails, kAllowsNothing };
  explicit Thirds(uint32_t fault_at = 0, Fault fault = Fault::kFails)
      : fault_at_(fault_at), fault_(fault) {}

  Status Mask(std::span<uint32_t> bits) override {
    if (fault_at_ != 0 && accepted_ == fault_at_) {
      if (fault_ == Fault::kAllowsNothing) return Status();
      return Status(Code::kInvalidArgument, "this far and no further");
    }
    for (size_t t = 0; t < 32 * bits.size(); ++t) {
      if ((t + last_) % 3 != 0) bits[t / 32] |= 1u << t % 32;
    }
    return Status();
  }
  Status Accept(int32_t token) override {
    EXPECT_NE((static_cast<size_t>(token) + last_) % 3, 0u);
    last_ = static_cast<size_t>(token);
    ++accepted_;
    return Status();
  }

 private:
  uint32_t fault_at_, accepted_ = 0;
  Fault fault_;
  size_t last_ = 1;
};

// ---- a covering array ---------------------------------------------------------------------------

enum Factor {
  kTemperature,
  kMinP,
  kTopK,
  kTopP,
  kRepetition,
  kPresence,
  kFrequency,
  kBias,
  kLogprobs,
  kMinTokens,
  kMask,
  kFactors
};
constexpr std::array<uint32_t, kFactors> kLevels = {3, 2, 3, 2, 2, 2, 2, 2, 3, 2, 2};
using Case = std::array<uint32_t, kFactors>;

void AddPairs(const Case& c, std::set<std::array<uint32_t, 4>>* pairs) {
  for (uint32_t f = 0; f < kFactors; ++f) {
    for (uint32_t g = f + 1; g < kFactors; ++g) pairs->insert({f, c[f], g, c[g]});
  }
}

// Every two levels of two factors are together in a case: the best of some random ones, again and
// again.
std::vector<Case> CoverPairs() {
  size_t wanted = 0;
  for (uint32_t f = 0; f < kFactors; ++f) {
    for (uint32_t g = f + 1; g < kFactors; ++g) wanted += size_t{kLevels[f]} * kLevels[g];
  }
  SplitMix64 random(5);
  std::vector<Case> cases;
  std::set<std::array<uint32_t, 4>> covered;
  while (covered.size() < wanted) {
    Case best{};
    size_t most = covered.size();
    for (int i = 0; i < 50; ++i) {
      Case c;
      for (uint32_t f = 0; f < kFactors; ++f)
        c[f] = static_cast<uint32_t>(random.Next() % kLevels[f]);
      std::set<std::array<uint32_t, 4>> with = covered;
      AddPairs(c, &with);
      if (with.size() <= most) continue;
      most = with.size();
      best = c;
    }
    if (most == covered.size()) continue;
    AddPairs(best, &covered);
    cases.push_back(best);
  }
  return cases;
}

Request RequestOf(const Case& c, uint32_t seed, int32_t end_token) {
  Request request = Prompt(18 + seed % 7, seed, 7);
  SamplingOptions& s = request.sampling;
  s.temperature = std::array{0.0f, 0.7f, 3.0f}[c[kTemperature]];
  s.min_p = std::array{0.0f, 0.03f}[c[kMinP]];
  s.top_k = std::array{0u, 1u, 12u}[c[kTopK]];
  s.top_p = std::array{1.0f, 0.8f}[c[kTopP]];
  s.repetition_penalty = std::array{1.0f, 1.6f}[c[kRepetition]];
  s.presence_penalty = std::array{0.0f, 1.1f}[c[kPresence]];
  s.frequency_penalty = std::array{0.0f, -1.5f}[c[kFrequency]];
  // The end of the answer comes as soon as it may.
  if (c[kBias] != 0) s.logit_bias = {{end_token, 30.0f}, {17, 4.5f}, {40, -100.0f}};
  s.seed = seed;
  request.top_logprobs = std::array{-1, 0, 4}[c[kLogprobs]];
  request.ignore_eos = false;
  // A constraint says itself where an answer may end.
  if (c[kMask] != 0) request.constraint = std::make_shared<Thirds>();
  if (c[kMask] == 0) request.min_tokens = std::array{0u, 5u}[c[kMinTokens]];
  return request;
}

// ---- both ways ----------------------------------------------------------------------------------

struct Told {
  Answer answer;
  std::vector<std::vector<TokenLogprob>> top;  // by token
};

std::unique_ptr<Engine> Open(bool device_draws) {
  auto engine = EngineImpl::Open(TinyOptions({}), /*overlaps=*/true, device_draws);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return *std::move(engine);
}

std::vector<Told> RunAll(bool device_draws, const std::vector<Case>& cases) {
  const auto engine = Open(device_draws);
  const int32_t end_token = engine->tokenizer_info().end_tokens.at(0);
  std::vector<Told> all(cases.size());
  std::vector<RequestId> ids;
  for (size_t i = 0; i < cases.size(); ++i) {
    Told* told = &all[i];
    const auto id =
        engine->Submit(RequestOf(cases[i], static_cast<uint32_t>(i), end_token),
                       [told, collect = CollectInto(&told->answer)](const TokenEvent& event) {
                         if (event.kind == TokenEvent::Kind::kToken) told->top.push_back(event.top);
                         collect(event);
                       });
    EXPECT_TRUE(id.ok()) << id.status().message();
    ids.push_back(*id);
  }
  for (const RequestId id : ids) engine->Wait(id);
  return all;
}

void ExpectSameTop(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].token, b[i].token);
    EXPECT_NEAR(a[i].logprob, b[i].logprob, 1e-5);
  }
}

TEST(DeviceSampling, IsTheHostsUnderEveryWish) {
  const std::vector<Case> cases = CoverPairs();
  const std::vector<Told> host = RunAll(false, cases), device = RunAll(true, cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    const Told &a = host[i], &b = device[i];
    EXPECT_TRUE(b.answer.status.ok()) << b.answer.status.message();
    EXPECT_EQ(a.answer.tokens, b.answer.tokens);
    EXPECT_EQ(a.answer.finish, b.answer.finish);
    const bool more = cases[i][kMinTokens] != 0 && cases[i][kMask] == 0;
    EXPECT_GE(b.answer.tokens.size(), more ? 5u : 1u);
    ASSERT_EQ(a.top.size(), b.top.size());
    for (size_t t = 0; t < a.top.size(); ++t) {
      EXPECT_NEAR(a.answer.logprobs[t], b.answer.logprobs[t], 1e-5);
      ExpectSameTop(a.top[t], b.top[t]);
    }
  }
  const auto ends = std::count_if(device.begin(), device.end(), [](const Told& told) {
    return told.answer.finish == FinishReason::kStop;
  });
  EXPECT_GT(ends, 0);
  EXPECT_LT(ends, static_cast<std::ptrdiff_t>(cases.size()));
}

// Nobody's tokens depend on who else is drawn for, and how.
TEST(DeviceSampling, IsTheSameAlone) {
  std::vector<Case> cases = CoverPairs();
  cases.resize(4);
  const std::vector<Told> together = RunAll(true, cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto engine = Open(true);
    const Request request =
        RequestOf(cases[i], static_cast<uint32_t>(i), engine->tokenizer_info().end_tokens.at(0));
    EXPECT_EQ(Ask(engine.get(), request).tokens, together[i].answer.tokens);
  }
}

TEST(DeviceSampling, TellsOfConstraintsThatFailAsTheHostDoes) {
  for (const auto fault : {Thirds::Fault::kFails, Thirds::Fault::kAllowsNothing}) {
    Answer answers[2];
    for (const bool device_draws : {false, true}) {
      Request request = Prompt(20, 1, 9);
      request.ignore_eos = false;
      request.constraint = std::make_shared<Thirds>(3, fault);
      answers[device_draws] = Ask(Open(device_draws).get(), request);
    }
    EXPECT_EQ(answers[1].finish, FinishReason::kError);
    EXPECT_EQ(answers[1].tokens.size(), 3u);
    EXPECT_EQ(answers[1].tokens, answers[0].tokens);
    EXPECT_EQ(answers[1].status.message(), answers[0].status.message());
  }
}

}  // namespace
}  // namespace tinyserve
