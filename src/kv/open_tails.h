// Ends of sequences that were not coded yet: what they leave to those that go on with the same
// tokens.
#ifndef TINYSERVE_KV_OPEN_TAILS_H_
#define TINYSERVE_KV_OPEN_TAILS_H_

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "kv/prefix_tree.h"

namespace tinyserve {

// The tokens of a window that is not full, after a path of the prefix tree.
struct OpenTail {
  const PrefixTree::Node* node = nullptr;  // the path's end, never a root
  std::vector<int32_t> tokens;
  uint32_t by_prefill = 0;  // so many of the first ones; the others were made by `maker`
  PrefixMaker maker = kMadeByPrefill;
  std::vector<std::vector<uint32_t>> pages;  // [group] raw pages of the open storage

  // How many of its tokens others may have who go on with `next`.
  uint32_t Common(std::span<const int32_t> next, PrefixMaker for_maker) const;
};

// Bookkeeping only: the tails name raw pages, which KvCache gives back. Not thread-safe.
class OpenTails {
 public:
  // The tail at a node that shares the most tokens with `next`, taken out; none: none shares any.
  std::optional<OpenTail> Take(const PrefixTree::Node* node, std::span<const int32_t> next,
                               PrefixMaker maker);
  // As the newest. Returns those whose pages nobody needs any more: others of its node of which it
  // has all tokens; or it itself, where one of them has all of its own, and is the newest then.
  std::vector<OpenTail> Put(OpenTail tail);
  // The one that was put first. REQUIRES: not empty.
  OpenTail TakeOldest();
  // All of a node that is no more.
  std::vector<OpenTail> TakeOf(const PrefixTree::Node* node);

  uint32_t pages() const { return pages_; }  // of all tails, in each group
  const std::list<OpenTail>& all() const { return tails_; }

 private:
  OpenTail TakeOut(std::list<OpenTail>::iterator at);

  std::list<OpenTail> tails_;  // the oldest first
  uint32_t pages_ = 0;
};

}  // namespace tinyserve

#endif  // TINYSERVE_KV_OPEN_TAILS_H_
