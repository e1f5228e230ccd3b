#include "engine/session_table.h"

namespace tinyserve {

void SessionTable::Begin(std::string_view client, std::string_view session, double now) {
  Expire(now);
  const Key key{client, session};
  auto at = sessions_.find(key);
  if (at == sessions_.end()) {
    if (sessions_.size() >= limits_.sessions_max) {
      auto oldest = sessions_.end();
      for (auto other = sessions_.begin(); other != sessions_.end(); ++other) {
        if (other->second.running > 0) continue;
        if (oldest == sessions_.end() || other->second.last < oldest->second.last) oldest = other;
      }
      if (oldest == sessions_.end()) return;
      Drop(oldest);
    }
    at = sessions_.emplace(key, Session{.number = next_number_++, .created = now, .last = now})
             .first;
  }
  at->second.last = now;
  ++at->second.requests;
  ++at->second.running;
}

std::optional<uint64_t> SessionTable::End(std::string_view client, std::string_view session,
                                          const Usage& usage, double now) {
  const auto at = sessions_.find(Key{client, session});
  // One that began anew since then may lack this request.
  if (at == sessions_.end() || at->second.running == 0) return std::nullopt;
  Session& s = at->second;
  --s.running;
  s.last = now;
  s.prompt_tokens += usage.prompt_tokens;
  s.generated_tokens += usage.completion_tokens;
  return s.number;
}

bool SessionTable::Erase(std::string_view client, std::string_view session, double now) {
  Expire(now);
  const auto at = sessions_.find(Key{client, session});
  if (at == sessions_.end()) return false;
  Drop(at);
  return true;
}

void SessionTable::Expire(double now) {
  for (auto at = sessions_.begin(); at != sessions_.end();)
    at = IsOver(at->second, now) ? Drop(at) : std::next(at);
}

std::vector<SessionInfo> SessionTable::List(std::string_view client, double now) const {
  std::vector<SessionInfo> list;
  for (auto at = sessions_.lower_bound(Key{client, ""});
       at != sessions_.end() && at->first.first == client; ++at) {
    const Session& s = at->second;
    if (IsOver(s, now)) continue;
    list.push_back({.session = at->first.second,
                    .age_seconds = now - s.created,
                    .idle_seconds = now - s.last,
                    .requests = s.requests,
                    .prompt_tokens = s.prompt_tokens,
                    .generated_tokens = s.generated_tokens,
                    .running = s.running});
  }
  return list;
}

}  // namespace tinyserve
