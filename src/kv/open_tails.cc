#include "kv/open_tails.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"

namespace tinyserve {

uint32_t OpenTail::Common(std::span<const int32_t> next, PrefixMaker for_maker) const {
  const size_t most =
      std::min<size_t>(next.size(), maker == for_maker ? tokens.size() : by_prefill);
  const auto end = tokens.begin() + static_cast<long>(most);
  return static_cast<uint32_t>(std::mismatch(tokens.begin(), end, next.begin()).first -
                               tokens.begin());
}

OpenTail OpenTails::TakeOut(std::list<OpenTail>::iterator at) {
  OpenTail tail = std::move(*at);
  tails_.erase(at);
  pages_ -= static_cast<uint32_t>(tail.pages[0].size());
  return tail;
}

std::optional<OpenTail> OpenTails::Take(const PrefixTree::Node* node, std::span<const int32_t> next,
                                        PrefixMaker maker) {
  auto best = tails_.end();
  uint32_t best_tokens = 0;
  for (auto tail = tails_.begin(); tail != tails_.end(); ++tail) {
    if (tail->node != node) continue;
    const uint32_t tokens = tail->Common(next, maker);
    if (tokens <= best_tokens) continue;
    best = tail;
    best_tokens = tokens;
  }
  if (best == tails_.end()) return std::nullopt;
  return TakeOut(best);
}

std::vector<OpenTail> OpenTails::Put(OpenTail tail) {
  TS_CHECK(tail.node != nullptr && tail.node->parent != nullptr && !tail.tokens.empty());
  // Whether who has `a` has all of `b`, too.
  const auto holds = [](const OpenTail& a, const OpenTail& b) {
    return a.node == b.node && a.Common(b.tokens, b.maker) == b.tokens.size() &&
           a.by_prefill >= b.by_prefill;
  };
  std::vector<OpenTail> dropped;
  for (auto other = tails_.begin(); other != tails_.end();) {
    const auto next = std::next(other);
    if (holds(*other, tail)) {
      tails_.splice(tails_.end(), tails_, other);  // as good as new
      dropped.push_back(std::move(tail));
      return dropped;
    }
    if (holds(tail, *other)) dropped.push_back(TakeOut(other));
    other = next;
  }
  pages_ += static_cast<uint32_t>(tail.pages[0].size());
  tails_.push_back(std::move(tail));
  return dropped;
}

OpenTail OpenTails::TakeOldest() { return TakeOut(tails_.begin()); }

std::vector<OpenTail> OpenTails::TakeOf(const PrefixTree::Node* node) {
  std::vector<OpenTail> taken;
  for (auto tail = tails_.begin(); tail != tails_.end();) {
    const auto next = std::next(tail);
    if (tail->node == node) taken.push_back(TakeOut(tail));
    tail = next;
  }
  return taken;
}

}  // namespace tinyserve
