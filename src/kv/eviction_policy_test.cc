// Policies on the prefix tree, under a seeded trace of conversations; the table that this prints is
// in docs/selection.md.
#include "kv/eviction_policy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "kv/prefix_tree.h"

namespace tinyserve {
namespace {

constexpr uint32_t kUnit = 64;

TEST(EvictionPolicy, NamesAreRead) {
  EXPECT_EQ(*ParseEvictionKind("cost"), EvictionKind::kCost);
  EXPECT_NE(ParseEvictionKind("mru").status().message().find("lru, lfu and cost"),
            std::string::npos);
}

TEST(EvictionPolicy, OldFameFades) {
  EvictionPolicy policy(EvictionKind::kLfu);
  const double famous = policy.WorthOf(1, 10, 0);
  double fresh = policy.WorthOf(2, 1, 0);
  EXPECT_LT(fresh, famous);
  for (int i = 0; i < 10; ++i) {
    policy.Evicted(fresh);
    fresh = policy.WorthOf(3, 1, 0);
  }
  EXPECT_GT(fresh, famous);
}

TEST(EvictionPolicy, DeepUnitsCostMore) {
  const EvictionPolicy policy(EvictionKind::kCost, 1000);
  EXPECT_EQ(policy.WorthOf(1, 1, 1000), 2 * policy.WorthOf(1, 1, 0));
}

struct Outcome {
  double hit_rate;    // of prompt tokens
  double work_saved;  // share of the work of prefill
};

// What a server sees: one of 40 system prompts (Zipf), then turns of a conversation that come while
// others do; one in eight prompts is a long document that is read once.
class Trace {
 public:
  explicit Trace(uint32_t seed) : random_(seed) {}

  std::vector<int32_t> NextPrompt() {
    if (random_() % 8 == 0) return Fresh(16 + random_() % 48);
    if (open_.size() < 24 || random_() % 4 == 0) {
      if (open_.size() >= 24) open_.erase(open_.begin() + random_() % open_.size());
      const double u = (static_cast<double>(random_() % 100000) + 0.5) / 100000;
      const auto system = static_cast<int32_t>(std::pow(40.0, u));  // 1..39, density 1/x
      std::vector<int32_t> prompt;
      for (int32_t i = 0; i < static_cast<int32_t>(kUnit) * (2 + system % 7); ++i)
        prompt.push_back(-(system * 10000 + i));
      open_.push_back(prompt);
    }
    // Recent conversations go on more often than old ones.
    const size_t back = std::min<size_t>(random_() % open_.size(), random_() % open_.size());
    std::vector<int32_t>& conversation = open_[open_.size() - 1 - back];
    const std::vector<int32_t> turn = Fresh(1 + random_() % 6);
    conversation.insert(conversation.end(), turn.begin(), turn.end());
    return conversation;
  }

 private:
  std::vector<int32_t> Fresh(uint32_t units) {
    std::vector<int32_t> tokens(uint64_t{units} * kUnit);
    for (int32_t& token : tokens) token = ++next_;
    return tokens;
  }
  std::mt19937 random_;
  int32_t next_ = 0;
  std::vector<std::vector<int32_t>> open_;
};

Outcome Simulate(EvictionKind kind, uint32_t units_max, uint32_t seed) {
  constexpr double kCross = 3000;
  PrefixTree tree(kUnit, EvictionPolicy(kind, kCross));
  PrefixTree::Node* root = tree.Join("");
  Trace trace(seed);
  const auto work = [](uint64_t unit) { return 1 + static_cast<double>(unit * kUnit) / kCross; };
  double tokens = 0, hits = 0, work_all = 0, work_saved = 0;
  uint32_t block = 0;
  for (int request = 0; request < 3000; ++request) {
    const std::vector<int32_t> prompt = trace.NextPrompt();
    const PrefixTree::Match match = tree.Longest(root, prompt, kMadeByPrefill);
    tree.Use(match.node);
    const uint64_t units = prompt.size() / kUnit;
    PrefixTree::Node* node = match.node;
    for (uint64_t u = 0; u < units; ++u) {
      tokens += kUnit;
      work_all += work(u);
      if (u < match.units) {
        hits += kUnit;
        work_saved += work(u);
        continue;
      }
      // The request's own path is held while it is computed.
      if (tree.size() >= units_max) {
        const auto idle = [&](const PrefixTree::Node& n) { return &n != node; };
        if (tree.EvictFirst(idle).empty()) break;
      }
      node =
          tree.Insert(node, std::span(prompt).subspan(u * kUnit, kUnit), kMadeByPrefill, {block++});
    }
  }
  EXPECT_EQ(tree.CheckIntegrity(), "");
  return {.hit_rate = hits / tokens, .work_saved = work_saved / work_all};
}

TEST(EvictionPolicy, TableOfHitRates) {
  std::printf("blocks     lru           lfu           cost\n");
  for (const uint32_t units : {128u, 256u, 512u, 1024u, 2048u}) {
    std::printf("%6u", units);
    double lru = 0;
    for (const EvictionKind kind : {EvictionKind::kLru, EvictionKind::kLfu, EvictionKind::kCost}) {
      Outcome mean{};
      for (uint32_t seed = 1; seed <= 3; ++seed) {
        const Outcome outcome = Simulate(kind, units, seed);
        mean.hit_rate += outcome.hit_rate / 3;
        mean.work_saved += outcome.work_saved / 3;
      }
      std::printf("   %.3f %.3f", mean.hit_rate, mean.work_saved);
      if (kind == EvictionKind::kLru) lru = mean.hit_rate;
      // As the documentation says: uses help a little, their cost does not.
      if (kind == EvictionKind::kLru) continue;
      EXPECT_GT(mean.hit_rate, kind == EvictionKind::kLfu ? lru : 0.9 * lru);
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace tinyserve
