#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace tinyserve {
namespace {

constexpr size_t kClasses = 3;
// What an admission costs a class: the inverse of its weight.
constexpr uint64_t kStrides[kClasses] = {1, 4, 16};

size_t ClassOf(const ScheduledRequest& request) { return static_cast<size_t>(request.priority); }

}  // namespace

uint32_t Scheduler::BlocksFor(const ScheduledRequest& request) const {
  return BlocksOf(uint64_t{request.prompt_tokens} + std::max(1u, request.max_tokens) - 1);
}

// ---- who waits ----------------------------------------------------------------------------------

void Scheduler::Submit(const ScheduledRequest& request) {
  TS_CHECK(request.prompt_tokens > 0 && BlocksFor(request) <= limits_.blocks);
  const auto [client, is_new] = clients_.try_emplace(request.client);
  if (is_new && clients_.size() > 1) {
    // Not below those that are here: nobody saves up by staying away.
    uint64_t least = UINT64_MAX;
    for (const auto& [id, other] : clients_) {
      if (id != request.client) least = std::min(least, other.served);
    }
    client->second.served = least;
  }
  ++client->second.live;
  Enqueue({.request = request, .known = request.prompt_tokens}, /*first=*/false);
}

void Scheduler::Enqueue(const Waiting& waiting, bool first) {
  const size_t c = ClassOf(waiting.request);
  if (waiting_[c].empty()) passes_[c] = std::max(passes_[c], pass_);
  std::deque<Waiting>& line = waiting_[c][waiting.request.client];
  if (first) {
    line.push_front(waiting);
  } else {
    line.push_back(waiting);
  }
  ++waiting_count_;
}

void Scheduler::Forget(uint64_t client) {
  const auto at = clients_.find(client);
  if (--at->second.live == 0) clients_.erase(at);
}

size_t Scheduler::NextClass() const {
  size_t next = kClasses;
  for (size_t c = 0; c < kClasses; ++c) {
    if (waiting_[c].empty()) continue;
    if (next == kClasses || passes_[c] < passes_[next]) next = c;
  }
  TS_CHECK(next < kClasses);
  return next;
}

Scheduler::Lines::iterator Scheduler::NextLine(Lines* lines) const {
  return std::min_element(lines->begin(), lines->end(), [this](const auto& a, const auto& b) {
    const uint64_t served_a = clients_.at(a.first).served, served_b = clients_.at(b.first).served;
    return served_a != served_b ? served_a < served_b
                                : a.second.front().request.id < b.second.front().request.id;
  });
}

std::vector<Scheduler::Running>::iterator Scheduler::FindRunning(RequestId id) {
  return std::find_if(running_.begin(), running_.end(),
                      [id](const Running& r) { return r.request.id == id; });
}

bool Scheduler::Remove(RequestId id) {
  if (part_.id == id) part_ = {};
  const auto running = FindRunning(id);
  if (running != running_.end()) {
    blocks_promised_ -= running->blocks;
    Forget(running->request.client);
    running_.erase(running);
    return true;
  }
  for (Lines& lines : waiting_) {
    for (auto line = lines.begin(); line != lines.end(); ++line) {
      const auto at = std::find_if(line->second.begin(), line->second.end(),
                                   [id](const Waiting& w) { return w.request.id == id; });
      if (at == line->second.end()) continue;
      line->second.erase(at);
      Forget(line->first);
      if (line->second.empty()) lines.erase(line);
      --waiting_count_;
      return true;
    }
  }
  return false;
}

std::vector<RequestId> Scheduler::Admit() {
  std::vector<RequestId> admitted;
  while (waiting_count_ > 0 && running_.size() < running_max_) {
    const size_t c = NextClass();
    const auto line = NextLine(&waiting_[c]);
    const Waiting next = line->second.front();
    const uint32_t blocks = BlocksOf(next.known);
    // A block more for each, so that they do not push each other out at once.
    const uint64_t spare = running_.size();
    if (blocks_promised_ + blocks + spare > limits_.blocks && !running_.empty()) break;
    line->second.pop_front();
    if (line->second.empty()) waiting_[c].erase(line);
    --waiting_count_;
    pass_ = passes_[c];
    passes_[c] += kStrides[c];
    blocks_promised_ += blocks;
    const auto behind = std::find_if(running_.begin(), running_.end(),
                                     [c](const Running& r) { return ClassOf(r.request) > c; });
    running_.insert(behind, {.request = next.request, .known = next.known, .blocks = blocks});
    admitted.push_back(next.request.id);
  }
  return admitted;
}

// ---- what runs ----------------------------------------------------------------------------------

void Scheduler::Start(RequestId id, uint32_t done, uint32_t row_multiple, bool by_layers) {
  const auto at = FindRunning(id);
  TS_CHECK(at != running_.end() && !at->started && done < at->request.prompt_tokens);
  at->started = true;
  at->done = done;
  at->row_multiple = row_multiple;
  at->by_layers = by_layers;
}

void Scheduler::Drop(RequestId id, uint32_t tokens) {
  const auto at = FindRunning(id);
  TS_CHECK(at != running_.end() && at->dropped + tokens <= at->done);
  at->dropped += tokens;
  const uint32_t blocks = std::min(at->blocks, BlocksOf(at->known - at->dropped));
  blocks_promised_ -= at->blocks - blocks;
  at->blocks = blocks;
}

void Scheduler::Preempt(size_t index, ScheduledStep* step) {
  const Running victim = running_[index];
  if (part_.id == victim.request.id) part_ = {};
  running_.erase(running_.begin() + static_cast<long>(index));
  blocks_promised_ -= victim.blocks;
  Enqueue({.request = victim.request, .known = victim.known}, /*first=*/true);
  step->preempted.push_back(victim.request.id);
}

bool Scheduler::Promise(RequestId id, uint32_t tokens, ScheduledStep* step) {
  for (;;) {
    const auto at = FindRunning(id);
    if (at == running_.end()) return false;
    const uint32_t more = MoreBlocks(*at, tokens);
    if (blocks_promised_ + more <= limits_.blocks) {
      at->blocks += more;
      blocks_promised_ += more;
      return true;
    }
    Preempt(running_.size() - 1, step);
  }
}

uint32_t Scheduler::LeftOf(const Running& r) {
  return (r.done < r.request.prompt_tokens ? r.request.prompt_tokens : r.known) - r.done;
}

uint32_t Scheduler::generating() const {
  return static_cast<uint32_t>(std::count_if(running_.begin(), running_.end(), Generates));
}

uint32_t Scheduler::prompt_depth() const {
  const auto first = std::find_if(running_.begin(), running_.end(), [this](const Running& r) {
    return part_.tokens > 0 ? r.request.id == part_.id : r.started && !Generates(r);
  });
  return first == running_.end() ? 0 : first->done;
}

ScheduledRow Scheduler::RowOf(const Running& r, uint32_t length) const {
  return {.id = r.request.id,
          .first_position = r.done,
          .length = length,
          .prompt = r.done < r.request.prompt_tokens,
          .sampled = r.done + length == r.known};
}

void Scheduler::CountAsDone(const ScheduledRow& row, Running* r) {
  r->done += row.length;
  if (r->done == r->known) ++r->known;
  clients_.at(r->request.client).served += row.length;
}

void Scheduler::PlanRow(Running* r, uint32_t length, ScheduledStep* step) {
  step->rows.push_back(RowOf(*r, length));
  CountAsDone(step->rows.back(), r);
}

void Scheduler::Plan(PromptBudget budget, ScheduledStep* step) {
  step->rows.clear();
  step->preempted.clear();
  // Who gives way comes after all who have their rows by then.
  for (size_t i = 0; i < running_.size(); ++i) {
    if (!Generates(running_[i]) || Ends(running_[i])) continue;
    if (Promise(running_[i].request.id, running_[i].known, step)) PlanRow(&running_[i], 1, step);
  }
  PlanPrompts(step->rows.empty() ? nullptr : &budget, step);
}

bool Scheduler::OnlyGenerates() const {
  uint64_t rows = 0, blocks = blocks_promised_;
  for (const Running& r : running_) {
    if (!Generates(r)) return false;
    if (Ends(r)) continue;
    ++rows;
    blocks += MoreBlocks(r, r.known);
  }
  return rows > 0 && blocks <= limits_.blocks;
}

void Scheduler::PlanPrompts(PromptBudget* budget, ScheduledStep* step) {
  // Room for what is in the making is kept also where it rests.
  auto left = limits_.step_tokens_max - static_cast<uint32_t>(step->rows.size()) - part_.tokens;
  std::optional<ScheduledRow> part;
  if (part_.tokens > 0) part = GoOn(budget);
  for (Running& r : running_) {
    if (part_.tokens > 0 && !(part && part->done)) break;
    if (!r.started || Generates(r) || (part && part->id == r.request.id)) continue;
    uint32_t length = std::min(left, LeftOf(r));
    const bool prompt = r.done < r.request.prompt_tokens;
    if (r.row_multiple != 0 && !prompt)
      length = std::min(length, r.row_multiple - r.done % r.row_multiple);
    if (budget != nullptr && length > 0) {
      if (r.by_layers && prompt && !part) {
        part_ = {r.request.id, budget->TokensByLayers(r.done, length), {0, budget->sublayers()}};
        if (part_.tokens > 0) part = GoOn(budget);
        if (part) break;
      }
      length = budget->Take(r.done, length);
    }
    if (length == 0) break;
    PlanRow(&r, length, step);
    left -= length;
  }
  if (part) step->rows.push_back(*part);
}

std::optional<ScheduledRow> Scheduler::GoOn(PromptBudget* budget) {
  Running* r = &*FindRunning(part_.id);
  const SublayerRange* left = &part_.left;
  const uint32_t sublayers =
      budget == nullptr ? left->count() : budget->TakeSublayers(r->done, part_.tokens, *left);
  if (sublayers == 0) return std::nullopt;
  ScheduledRow row = RowOf(*r, part_.tokens);
  row.part = {left->begin, left->begin + sublayers};
  row.done = row.part.end == left->end;
  row.sampled = row.sampled && row.done;
  return row;
}

bool Scheduler::CameTo(uint32_t sublayer) {
  TS_CHECK(part_.tokens > 0 && sublayer <= part_.left.end);
  part_.left.begin = sublayer;
  if (!part_.left.empty()) return false;
  Running* r = &*FindRunning(part_.id);
  CountAsDone(RowOf(*r, part_.tokens), r);
  part_ = {};
  return true;
}

}  // namespace tinyserve
