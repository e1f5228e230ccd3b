#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace tinyserve {

uint32_t Scheduler::BlocksFor(const ScheduledRequest& request) const {
  const uint64_t tokens = uint64_t{request.prompt_tokens} + std::max(1u, request.max_tokens) - 1;
  return static_cast<uint32_t>((tokens + limits_.block_tokens - 1) / limits_.block_tokens);
}

void Scheduler::Submit(const ScheduledRequest& request) {
  TS_CHECK(request.prompt_tokens > 0 && BlocksFor(request) <= limits_.blocks);
  waiting_[static_cast<size_t>(request.priority)].push_back(request);
}

bool Scheduler::Remove(RequestId id) {
  for (std::deque<ScheduledRequest>& queue : waiting_) {
    const auto at = std::find_if(queue.begin(), queue.end(),
                                 [id](const ScheduledRequest& r) { return r.id == id; });
    if (at == queue.end()) continue;
    queue.erase(at);
    return true;
  }
  const auto at = std::find_if(running_.begin(), running_.end(),
                               [id](const Running& r) { return r.request.id == id; });
  if (at == running_.end()) return false;
  blocks_promised_ -= at->blocks;
  running_.erase(at);
  return true;
}

std::vector<RequestId> Scheduler::Admit() {
  std::vector<RequestId> admitted;
  for (std::deque<ScheduledRequest>& queue : waiting_) {
    while (!queue.empty()) {
      const uint32_t blocks = BlocksFor(queue.front());
      if (running_.size() >= limits_.sequences_max || blocks > limits_.blocks - blocks_promised_)
        return admitted;
      blocks_promised_ += blocks;
      running_.push_back({.request = queue.front(), .blocks = blocks, .done = 0});
      admitted.push_back(queue.front().id);
      queue.pop_front();
    }
  }
  return admitted;
}

void Scheduler::Plan(std::vector<ScheduledRow>* rows) {
  rows->clear();
  uint32_t budget = limits_.step_tokens_max;
  for (Running& r : running_) {
    if (r.done < r.request.prompt_tokens) continue;
    rows->push_back({.id = r.request.id,
                     .first_position = r.done,
                     .length = 1,
                     .prompt = false,
                     .last_prompt = false});
    ++r.done;
    --budget;
  }
  for (Running& r : running_) {
    if (r.done >= r.request.prompt_tokens || budget == 0) continue;
    const uint32_t length = std::min(budget, r.request.prompt_tokens - r.done);
    rows->push_back({.id = r.request.id,
                     .first_position = r.done,
                     .length = length,
                     .prompt = true,
                     .last_prompt = r.done + length == r.request.prompt_tokens});
    r.done += length;
    budget -= length;
  }
}

uint32_t Scheduler::waiting() const {
  size_t n = 0;
  for (const auto& queue : waiting_) n += queue.size();
  return static_cast<uint32_t>(n);
}

}  // namespace tinyserve
