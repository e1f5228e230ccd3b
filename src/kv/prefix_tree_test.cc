#include "kv/prefix_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

namespace tinyserve {
namespace {

using Tokens = std::vector<int32_t>;
constexpr uint32_t kUnit = 4;

TEST(PrefixTree, FindsTheLongestPathAndWhatGoesOn) {
  PrefixTree tree(kUnit);
  PrefixTree::Node* root = tree.Join("");
  const Tokens a = {1, 2, 3, 4}, b = {5, 6, 7, 8}, c = {5, 6, 9, 9};
  PrefixTree::Node* first = tree.Insert(root, a, kMadeByPrefill, {10});
  PrefixTree::Node* second = tree.Insert(first, b, kMadeByPrefill, {11});
  tree.Insert(first, c, kMadeByPrefill, {12});
  PrefixTree::Match match = tree.Longest(root, Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9}, kMadeByPrefill);
  EXPECT_EQ(match.node, second);
  EXPECT_EQ(match.units, 2u);
  EXPECT_EQ(match.common_tokens, 0u);
  match = tree.Longest(root, Tokens{1, 2, 3, 4, 5, 6, 9, 1, 1}, kMadeByPrefill);
  EXPECT_EQ(match.node, first);
  ASSERT_NE(match.next, nullptr);
  EXPECT_EQ(match.next->blocks, std::vector<uint32_t>{12});
  EXPECT_EQ(match.common_tokens, 3u);
  match = tree.Longest(root, Tokens{1, 2, 3}, kMadeByPrefill);
  EXPECT_EQ(match.node, root);
  EXPECT_EQ(match.common_tokens, 3u);
  EXPECT_EQ(tree.Longest(root, Tokens{}, kMadeByPrefill).node, root);
  EXPECT_EQ(tree.CheckIntegrity(), "");
}

TEST(PrefixTree, SaltsShareNothing) {
  PrefixTree tree(kUnit);
  PrefixTree::Node *mine = tree.Join("mine"), *other = tree.Join("other");
  const Tokens a = {1, 2, 3, 4};
  tree.Insert(mine, a, kMadeByPrefill, {1});
  EXPECT_EQ(tree.Longest(mine, a, kMadeByPrefill).units, 1u);
  const PrefixTree::Match match = tree.Longest(other, a, kMadeByPrefill);
  EXPECT_EQ(match.units, 0u);
  EXPECT_EQ(match.common_tokens, 0u);
  EXPECT_EQ(tree.roots(), 2u);
  tree.Leave(other);  // nothing hangs on it
  EXPECT_EQ(tree.roots(), 1u);
  tree.Leave(mine);
  EXPECT_EQ(tree.roots(), 1u);
  EXPECT_EQ(tree.EvictFirst([](const auto&) { return true; }), std::vector<uint32_t>{1});
  EXPECT_EQ(tree.roots(), 0u);
}

TEST(PrefixTree, WhatIsPinnedGoesLast) {
  PrefixTree tree(kUnit);
  PrefixTree::Node* root = tree.Join("");
  const Tokens a = {1, 1, 1, 1}, b = {2, 2, 2, 2}, c = {3, 3, 3, 3}, d = {4, 4, 4, 4};
  PrefixTree::Node* first = tree.Insert(root, a, kMadeByPrefill, {1});
  PrefixTree::Node* second = tree.Insert(first, b, kMadeByPrefill, {2});
  tree.Pin(7, second);
  PrefixTree::Node* third = tree.Insert(second, c, kMadeByPrefill, {3});
  tree.Insert(root, d, kMadeByPrefill, {4});
  EXPECT_EQ(tree.pinned(), 2u);
  EXPECT_EQ(tree.CheckIntegrity(), "");
  const auto any = [](const auto&) { return true; };
  EXPECT_EQ(tree.EvictFirst(any), std::vector<uint32_t>{3});
  third = tree.Insert(second, c, kMadeByPrefill, {5});
  tree.Pin(8, third);  // another conversation that begins alike
  tree.Pin(8, third);
  EXPECT_EQ(tree.pinned(), 3u);
  EXPECT_EQ(tree.EvictFirst(any), std::vector<uint32_t>{4});
  // Nothing else is left.
  EXPECT_EQ(tree.EvictFirst(any), std::vector<uint32_t>{5});
  EXPECT_TRUE(tree.has_pin(8));
  EXPECT_EQ(tree.CheckIntegrity(), "");
  tree.Unpin(7);
  EXPECT_EQ(tree.pinned(), 2u);  // 8 still holds both
  tree.Unpin(8);
  EXPECT_EQ(tree.pinned(), 0u);
  tree.Pin(9, second);
  EXPECT_EQ(tree.EvictFirst(any), std::vector<uint32_t>{2});
  EXPECT_EQ(tree.EvictFirst(any), std::vector<uint32_t>{1});
  EXPECT_FALSE(tree.has_pin(9));
  EXPECT_EQ(tree.pinned(), 0u);
  tree.Pin(9, root);
  EXPECT_FALSE(tree.has_pin(9));
  EXPECT_EQ(tree.CheckIntegrity(), "");
}

TEST(PrefixTree, WhatWasGeneratedIsFoundByItsMakerAlone) {
  PrefixTree tree(kUnit);
  PrefixTree::Node* root = tree.Join("");
  const Tokens a = {1, 2, 3, 4}, all = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::span<const int32_t> b = std::span(all).subspan(4);
  PrefixTree::Node* made = tree.Insert(root, a, 7, {1});
  tree.Insert(made, b, kMadeByPrefill, {2});
  EXPECT_EQ(tree.Longest(root, all, 7).units, 2u);
  EXPECT_EQ(tree.Longest(root, all, 8).units, 0u);
  EXPECT_EQ(tree.Longest(root, all, 8).common_tokens, 0u);
  EXPECT_EQ(tree.Longest(root, all, kMadeByPrefill).units, 0u);
  // The same tokens by prefill: the longer path is taken, of equal ones that by prefill.
  PrefixTree::Node* exact = tree.Insert(root, a, kMadeByPrefill, {3});
  EXPECT_EQ(tree.Longest(root, all, 7).units, 2u);
  EXPECT_EQ(tree.Longest(root, all, 8).units, 1u);
  PrefixTree::Node* end = tree.Insert(exact, b, kMadeByPrefill, {4});
  EXPECT_EQ(tree.Longest(root, all, 7).node, end);
  EXPECT_EQ(tree.CheckIntegrity(), "");
}

// What the tree should hold: a map of paths, each by all of its tokens.
class PathModel {
 public:
  struct Known {
    uint32_t block;
    uint64_t touched;
    bool held;
  };

  static Tokens Prefix(const Tokens& tokens, size_t n) {
    return Tokens(tokens.begin(), tokens.begin() + static_cast<long>(n));
  }
  size_t Longest(const Tokens& tokens) const {
    size_t n = 0;
    while (n + kUnit <= tokens.size() && paths_.contains(Prefix(tokens, n + kUnit))) n += kUnit;
    return n;
  }
  // Tokens that some path of one unit more has in common, beyond those.
  size_t Common(const Tokens& tokens, size_t known) const {
    size_t common = known;
    for (const auto& [path, _] : paths_) {
      if (path.size() != known + kUnit) continue;
      const auto differ =
          std::mismatch(path.begin(), path.end(), tokens.begin(), tokens.end()).first;
      common = std::max(common, static_cast<size_t>(differ - path.begin()));
    }
    return common - known;
  }
  void Use(const Tokens& tokens, size_t known) {
    ++clock_;
    for (size_t n = kUnit; n <= known; n += kUnit) paths_.at(Prefix(tokens, n)).touched = clock_;
  }
  void Add(const Tokens& path, uint32_t block, bool held) {
    paths_[path] = {block, 0, held};
    path_of_[block] = path;
    Use(path, path.size());
  }
  bool Held(uint32_t block) const { return paths_.at(path_of_.at(block)).held; }
  // The block that is to go next; UINT32_MAX: none.
  uint32_t Oldest() const {
    const Known* oldest = nullptr;
    for (auto at = paths_.begin(); at != paths_.end(); ++at) {
      const auto after = std::next(at);  // paths are in order: what hangs on one follows it
      const bool leaf = after == paths_.end() || after->first.size() <= at->first.size() ||
                        Prefix(after->first, at->first.size()) != at->first;
      if (leaf && !at->second.held && (oldest == nullptr || at->second.touched < oldest->touched))
        oldest = &at->second;
    }
    return oldest == nullptr ? UINT32_MAX : oldest->block;
  }
  void Remove(uint32_t block) { paths_.erase(path_of_.at(block)); }
  size_t size() const { return paths_.size(); }

 private:
  std::map<Tokens, Known> paths_;
  std::map<uint32_t, Tokens> path_of_;
  uint64_t clock_ = 0;
};

// Random insertions, look-ups and evictions.
TEST(PrefixTree, BehavesLikeAMapOfPaths) {
  for (uint32_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    PrefixTree tree(kUnit);
    PrefixTree::Node* root = tree.Join("s");
    PathModel model;
    uint32_t next_block = 0;
    for (int step = 0; step < 250; ++step) {
      Tokens tokens(random() % 24);
      for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 2);
      const size_t known = model.Longest(tokens);
      const PrefixTree::Match match = tree.Longest(root, tokens, kMadeByPrefill);
      ASSERT_EQ(match.units * kUnit, known);
      ASSERT_EQ(match.common_tokens, model.Common(tokens, known));
      tree.Use(match.node);
      model.Use(tokens, known);
      PrefixTree::Node* node = match.node;
      for (size_t n = known + kUnit; n <= tokens.size() && random() % 4 != 0; n += kUnit) {
        const std::span<const int32_t> unit = std::span(tokens).subspan(n - kUnit, kUnit);
        node = tree.Insert(node, unit, kMadeByPrefill, {next_block});
        model.Add(PathModel::Prefix(tokens, n), next_block++, random() % 8 == 0);
      }
      if (random() % 2 == 0) {
        const uint32_t oldest = model.Oldest();
        const std::vector<uint32_t> blocks =
            tree.EvictFirst([&](const PrefixTree::Node& n) { return !model.Held(n.blocks[0]); });
        ASSERT_EQ(blocks.empty(), oldest == UINT32_MAX);
        if (!blocks.empty()) {
          ASSERT_EQ(blocks[0], oldest);
          model.Remove(oldest);
        }
      }
      ASSERT_EQ(tree.size(), model.size());
      ASSERT_EQ(tree.CheckIntegrity(), "");
    }
  }
}

}  // namespace
}  // namespace tinyserve
