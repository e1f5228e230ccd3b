#include "kv/prefix_tree.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace tinyserve {
namespace {

// Children beside the tokens looked for that are tried for one that may be used.
constexpr int kNeighboursMax = 8;

uint32_t CommonTokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  const auto end = a.begin() + static_cast<long>(n);
  return static_cast<uint32_t>(std::mismatch(a.begin(), end, b.begin()).first - a.begin());
}

}  // namespace

bool PrefixTree::EdgeLess::operator()(const Edge& a, const Edge& b) const {
  const auto order = std::lexicographical_compare_three_way(a.tokens.begin(), a.tokens.end(),
                                                            b.tokens.begin(), b.tokens.end());
  return order != 0 ? order < 0 : a.maker < b.maker;
}

PrefixTree::Node* PrefixTree::Join(std::string_view salt) {
  auto at = roots_.find(salt);
  if (at == roots_.end()) {
    at = roots_.try_emplace(std::string(salt)).first;
    at->second.salt = &at->first;
  }
  ++at->second.joined;
  return &at->second;
}

void PrefixTree::Leave(Node* root) {
  TS_CHECK(root->parent == nullptr && root->joined > 0);
  --root->joined;
  DropIfUnused(root);
}

void PrefixTree::DropIfUnused(Node* root) {
  if (root->joined > 0 || !root->children.empty()) return;
  roots_.erase(roots_.find(*root->salt));
}

PrefixTree::Match PrefixTree::Longest(Node* root, std::span<const int32_t> tokens,
                                      PrefixMaker maker) const {
  // Both kinds of child are followed where both exist: a path of one kind may end early.
  Match best{.node = root, .units = 0, .next = nullptr, .common_tokens = 0};
  std::vector<std::pair<Node*, uint32_t>> open = {{root, 0}};
  while (!open.empty()) {
    const auto [node, units] = open.back();
    open.pop_back();
    if (units > best.units) best = {node, units, nullptr, 0};
    const uint64_t begin = uint64_t{units} * unit_tokens_;
    if (begin + unit_tokens_ > tokens.size()) continue;
    const std::span<const int32_t> unit = tokens.subspan(begin, unit_tokens_);
    if (maker != kMadeByPrefill) {
      if (Node* child = Find(node, unit, maker)) open.emplace_back(child, units + 1);
    }
    if (Node* child = Find(node, unit, kMadeByPrefill)) open.emplace_back(child, units + 1);
  }
  FindNext(tokens.subspan(uint64_t{best.units} * unit_tokens_), maker, &best);
  return best;
}

void PrefixTree::FindNext(std::span<const int32_t> rest, PrefixMaker maker, Match* match) const {
  // The longest common beginnings stand right before and after the place of `rest`.
  const Children& children = match->node->children;
  const auto consider = [&](const Edge& edge, const Node* child) {
    if (edge.maker != kMadeByPrefill && edge.maker != maker) return false;
    const uint32_t common = CommonTokens(edge.tokens, rest);
    const bool better = common > match->common_tokens ||
                        (match->next != nullptr && common == match->common_tokens &&
                         child->maker < match->next->maker);
    if (better) {
      match->next = child;
      match->common_tokens = common;
    }
    return true;
  };
  const auto at = children.lower_bound({rest, kMadeByPrefill});
  auto after = at;
  for (int i = 0; i < kNeighboursMax && after != children.end(); ++i, ++after) {
    if (consider(after->first, after->second)) break;
  }
  auto before = at;
  for (int i = 0; i < kNeighboursMax && before != children.begin(); ++i) {
    --before;
    if (consider(before->first, before->second)) break;
  }
}

PrefixTree::Node* PrefixTree::Find(Node* parent, std::span<const int32_t> tokens,
                                   PrefixMaker maker) const {
  TS_CHECK(tokens.size() == unit_tokens_);
  const auto at = parent->children.find({tokens, maker});
  return at == parent->children.end() ? nullptr : at->second;
}

PrefixTree::Node* PrefixTree::Insert(Node* parent, std::span<const int32_t> tokens,
                                     PrefixMaker maker, std::vector<uint32_t> blocks) {
  TS_CHECK(Find(parent, tokens, maker) == nullptr);
  nodes_.emplace_back();
  Node* node = &nodes_.back();
  node->place = std::prev(nodes_.end());
  node->parent = parent;
  node->tokens.assign(tokens.begin(), tokens.end());
  node->maker = maker;
  node->blocks = std::move(blocks);
  if (parent->parent != nullptr) leaves_.erase(AgeOf(parent));
  parent->children.emplace(Edge{node->tokens, maker}, node);
  node->unit = parent->parent == nullptr ? 0 : parent->unit + 1;
  node->uses = 1;
  leaves_.insert(AgeOf(node));
  Touch(node, 0);
  return node;
}

void PrefixTree::Touch(Node* node, uint64_t uses) {
  ++clock_;
  const bool is_leaf = leaves_.erase(AgeOf(node)) > 0;
  for (Node* n = node; n->parent != nullptr; n = n->parent) {
    n->touched = clock_;
    n->uses += uses;
    n->worth = policy_.WorthOf(clock_, n->uses, n->unit * unit_tokens_);
  }
  if (is_leaf) leaves_.insert(AgeOf(node));
}

void PrefixTree::AddPin(Node* node) {
  const bool is_leaf = leaves_.erase(AgeOf(node)) > 0;
  for (Node* n = node; n->parent != nullptr; n = n->parent) pinned_ += n->pins++ == 0;
  if (is_leaf) leaves_.insert(AgeOf(node));
}

void PrefixTree::DropPin(Node* node) {
  const bool is_leaf = leaves_.erase(AgeOf(node)) > 0;
  for (Node* n = node; n->parent != nullptr; n = n->parent) pinned_ -= --n->pins == 0;
  if (is_leaf) leaves_.insert(AgeOf(node));
}

void PrefixTree::Pin(uint64_t pin, Node* node) {
  Unpin(pin);
  if (node->parent == nullptr) return;
  AddPin(node);
  pins_[pin] = node;
}

void PrefixTree::Unpin(uint64_t pin) {
  const auto at = pins_.find(pin);
  if (at == pins_.end()) return;
  DropPin(at->second);
  pins_.erase(at);
}

std::vector<uint32_t> PrefixTree::EvictFirst(const std::function<bool(const Node&)>& idle) {
  const auto at =
      std::find_if(leaves_.begin(), leaves_.end(), [&](const Age& age) { return idle(*age.node); });
  if (at == leaves_.end()) return {};
  Node* node = at->node;
  policy_.Evicted(node->worth);
  Node* parent = node->parent;
  leaves_.erase(at);
  if (node->pins > 0) {
    // It is a leaf, so all pins whose paths it is on end here.
    --pinned_;
    for (auto& [pin, end] : pins_) {
      if (end == node) end = parent;
    }
    std::erase_if(pins_, [](const auto& pin) { return pin.second->parent == nullptr; });
  }
  parent->children.erase({node->tokens, node->maker});
  std::vector<uint32_t> blocks = std::move(node->blocks);
  nodes_.erase(node->place);
  if (parent->parent == nullptr) {
    DropIfUnused(parent);
  } else if (parent->children.empty()) {
    leaves_.insert(AgeOf(parent));
  }
  return blocks;
}

std::string PrefixTree::CheckIntegrity() const {
  size_t leaves = 0;
  std::unordered_map<const Node*, uint32_t> pins;
  for (const auto& [pin, end] : pins_) {
    for (const Node* n = end; n->parent != nullptr; n = n->parent) ++pins[n];
  }
  if (pins.size() != pinned_)
    return fmt::format("{} nodes are pinned, {} are counted", pins.size(), pinned_);
  for (const Node& node : nodes_) {
    if (node.tokens.size() != unit_tokens_)
      return fmt::format("a node has {} tokens, not {}", node.tokens.size(), unit_tokens_);
    const auto at = node.parent->children.find({node.tokens, node.maker});
    if (at == node.parent->children.end() || at->second != &node)
      return "a node's parent does not know it";
    if (node.parent->parent != nullptr && node.parent->touched < node.touched)
      return "a node was used after its parent";
    if (const auto held = pins.find(&node); node.pins != (held == pins.end() ? 0 : held->second))
      return "a node does not know its pins";
    if (!node.children.empty()) continue;
    ++leaves;
    if (!leaves_.contains(AgeOf(const_cast<Node*>(&node)))) return "a leaf has no age";
  }
  if (leaves != leaves_.size())
    return fmt::format("{} nodes are leaves, {} have an age", leaves, leaves_.size());
  for (const auto& [salt, root] : roots_) {
    if (root.joined == 0 && root.children.empty())
      return fmt::format("the root of salt '{}' is of no use", salt);
  }
  return "";
}

}  // namespace tinyserve
