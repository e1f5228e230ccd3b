// Which token sequences the pool holds already: a tree whose edges are tokens and whose nodes are
// blocks.
#ifndef TINYSERVE_KV_PREFIX_TREE_H_
#define TINYSERVE_KV_PREFIX_TREE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kv/eviction_policy.h"

namespace tinyserve {

// What arithmetic made the keys and values of a unit, beside all that is fixed at start: prefill,
// or decoding under a selector, by a number that the caller gives it. The units before it on its
// path are part of what it was computed from, so equal paths hold equal bits.
using PrefixMaker = uint32_t;
constexpr PrefixMaker kMadeByPrefill = 0;

// Bookkeeping only: the nodes name blocks, whose references KvCache counts. Paths begin at the root
// of a salt, and no path is found from another's. Tokens are compared, never hashed. Not
// thread-safe.
class PrefixTree {
 public:
  struct Node;

  // unit_tokens: of a node, at least 1.
  explicit PrefixTree(uint32_t unit_tokens, const EvictionPolicy& policy = EvictionPolicy())
      : unit_tokens_(unit_tokens), policy_(policy) {}
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  uint32_t unit_tokens() const { return unit_tokens_; }
  size_t size() const { return nodes_.size(); }
  size_t roots() const { return roots_.size(); }

  // The root of a salt, new if need be; it stays until it is left as often as it was joined and
  // nothing hangs on it.
  Node* Join(std::string_view salt);
  void Leave(Node* root);

  struct Match {
    Node* node;              // the end of the longest path of whole units, or the root
    uint32_t units;          // of the path
    const Node* next;        // the child that goes on with the most of the tokens that follow
    uint32_t common_tokens;  // so many of them: less than a unit, or the rest of the tokens
  };
  // Units may be made by prefill or by `maker`. Of equally long paths that with the most units made
  // by prefill from its beginning on.
  Match Longest(Node* root, std::span<const int32_t> tokens, PrefixMaker maker) const;

  // The child with exactly these tokens. REQUIRES: a unit of them. Null: there is none.
  Node* Find(Node* parent, std::span<const int32_t> tokens, PrefixMaker maker) const;
  // Its path counts as used. REQUIRES: a unit of tokens that Find does not find.
  Node* Insert(Node* parent, std::span<const int32_t> tokens, PrefixMaker maker,
               std::vector<uint32_t> blocks);
  // A path was asked for again: its nodes have one use more.
  void Use(Node* node) { Touch(node, 1); }

  // A path goes after all that is not pinned. A pin has one path: another takes its place. Where a
  // pinned node goes all the same, its pins keep what is left of their paths. A root: none.
  void Pin(uint64_t pin, Node* node);
  void Unpin(uint64_t pin);
  bool has_pin(uint64_t pin) const { return pins_.contains(pin); }
  uint32_t pinned() const { return pinned_; }  // nodes

  // Takes out the node of least worth by the policy, of those without children for which `idle` is
  // true. Returns its blocks; empty: there is none.
  std::vector<uint32_t> EvictFirst(const std::function<bool(const Node&)>& idle);

  const std::list<Node>& nodes() const { return nodes_; }
  // Empty when links, ages and sizes agree, else what does not.
  std::string CheckIntegrity() const;

 private:
  // Points into its node.
  struct Edge {
    std::span<const int32_t> tokens;
    PrefixMaker maker;
  };
  struct EdgeLess {
    bool operator()(const Edge& a, const Edge& b) const;
  };
  using Children = std::map<Edge, Node*, EdgeLess>;
  // Who goes first comes first; the times of touching leaves differ.
  struct Age {
    bool pinned;
    double worth;
    uint64_t touched;
    Node* node;
    bool operator<(const Age& other) const {
      return std::tie(pinned, worth, touched, node) <
             std::tie(other.pinned, other.worth, other.touched, other.node);
    }
  };

 public:
  struct Node {
    Node* parent = nullptr;  // null: a root, without tokens and blocks
    std::vector<int32_t> tokens;
    PrefixMaker maker = kMadeByPrefill;
    std::vector<uint32_t> blocks;

   private:
    friend class PrefixTree;
    Children children;
    uint64_t touched = 0, uses = 0;
    uint64_t unit = 0;  // of its path, from 0
    double worth = 0;
    uint32_t joined = 0;                // of a root
    uint32_t pins = 0;                  // whose paths it is on
    const std::string* salt = nullptr;  // of a root
    std::list<Node>::iterator place;
  };

 private:
  static Age AgeOf(Node* node) { return {node->pins > 0, node->worth, node->touched, node}; }
  void AddPin(Node* node);
  void DropPin(Node* node);
  void Touch(Node* node, uint64_t uses);
  void FindNext(std::span<const int32_t> rest, PrefixMaker maker, Match* match) const;
  void DropIfUnused(Node* root);

  uint32_t unit_tokens_;
  EvictionPolicy policy_;
  std::list<Node> nodes_;
  std::map<std::string, Node, std::less<>> roots_;
  std::set<Age> leaves_;
  std::unordered_map<uint64_t, Node*> pins_;  // by pin: the end of its path, never a root
  uint32_t pinned_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_PREFIX_TREE_H_
