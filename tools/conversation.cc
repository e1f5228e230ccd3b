#include "tools/conversation.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace tinyserve {

BoundedConversation::BoundedConversation(std::string system, uint32_t context_tokens,
                                         uint32_t answer_room_tokens, FullPolicy policy)
    : has_system_(!system.empty()),
      context_tokens_(context_tokens),
      answer_room_tokens_(std::clamp(answer_room_tokens, 1u, std::max(1u, context_tokens / 4))),
      policy_(policy) {
  if (has_system_) messages_.push_back({"system", std::move(system)});
}

Result<BoundedConversation::Fitted> BoundedConversation::Ask(const std::string& question,
                                                             const Render& render) {
  std::vector<Message> kept = messages_;
  kept.push_back({"user", question});
  Fitted fitted{.prompt = {}, .answer_tokens_max = 0, .dropped_turns = 0};
  for (;;) {
    TS_ASSIGN_OR_RETURN(fitted.prompt, render(kept));
    if (fitted.prompt.size() + answer_room_tokens_ <= context_tokens_) break;
    const bool last_turn = kept.size() == first_turn() + 1;
    if (policy_ == FullPolicy::kRefuse || last_turn) {
      return Status(Code::kResourceExhausted,
                    fmt::format("this would make a prompt of {} tokens: the context holds {}, and "
                                "the answer needs {} of them",
                                fitted.prompt.size(), context_tokens_, answer_room_tokens_));
    }
    // One turn: a question, and what was said to it until the next question.
    const auto begin = kept.begin() + static_cast<ptrdiff_t>(first_turn());
    const auto end =
        std::find_if(begin + 1, kept.end(), [](const Message& m) { return m.role == "user"; });
    kept.erase(begin, end);
    ++fitted.dropped_turns;
  }
  messages_ = std::move(kept);
  fitted.answer_tokens_max = context_tokens_ - static_cast<uint32_t>(fitted.prompt.size());
  return fitted;
}

void BoundedConversation::TakeBack() {
  TS_CHECK(!messages_.empty() && messages_.back().role == "user");
  messages_.pop_back();
}

void BoundedConversation::Reset() { messages_.resize(first_turn()); }

uint32_t BoundedConversation::turns() const {
  return static_cast<uint32_t>(std::count_if(messages_.begin(), messages_.end(),
                                             [](const Message& m) { return m.role == "user"; }));
}

}  // namespace tinyserve
