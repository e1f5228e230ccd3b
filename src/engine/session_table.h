// Conversations that requests name: what was asked in them, and how long they last.
#ifndef TINYSERVE_ENGINE_SESSION_TABLE_H_
#define TINYSERVE_ENGINE_SESSION_TABLE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

struct SessionLimits {
  uint32_t sessions_max;
  double ttl_seconds;  // without a request
};

// Pure: time comes in. A session has a number, by which the cache knows what it holds for its sake;
// numbers of sessions that are over are told once, by TakeEnded. Not thread-safe.
class SessionTable {
 public:
  explicit SessionTable(const SessionLimits& limits) : limits_(limits) {}

  // A request begins. Where there are too many sessions, one without requests gives way, that which
  // was idle for longest; where all have some, it is not counted.
  void Begin(std::string_view client, std::string_view session, double now);
  // It has ended. Returns the session's number; nothing: it is over, so nothing is kept for it.
  std::optional<uint64_t> End(std::string_view client, std::string_view session, const Usage& usage,
                              double now);
  // False: there was none.
  bool Erase(std::string_view client, std::string_view session, double now);
  // Ends those whose time is over.
  void Expire(double now);
  std::vector<uint64_t> TakeEnded() { return std::exchange(ended_, {}); }

  // That which was idle for longest of those with numbers other than `except` for which `holds` is
  // true; nothing: there is none.
  template <class Holds>
  std::optional<uint64_t> LongestIdle(uint64_t except, const Holds& holds) const {
    const Session* found = nullptr;
    for (const auto& [key, session] : sessions_) {
      if (session.number == except || !holds(session.number)) continue;
      if (found == nullptr || session.last < found->last) found = &session;
    }
    return found == nullptr ? std::nullopt : std::optional(found->number);
  }

  // Of one client, in order of their names.
  std::vector<SessionInfo> List(std::string_view client, double now) const;
  size_t size() const { return sessions_.size(); }

 private:
  struct Session {
    uint64_t number;
    double created, last;  // seconds
    uint64_t requests = 0, prompt_tokens = 0, generated_tokens = 0;
    uint32_t running = 0;
  };
  using Key = std::pair<std::string, std::string>;  // client, session
  using Sessions = std::map<Key, Session>;

  bool IsOver(const Session& session, double now) const {
    return session.running == 0 && now - session.last > limits_.ttl_seconds;
  }
  Sessions::iterator Drop(Sessions::iterator at) {
    ended_.push_back(at->second.number);
    return sessions_.erase(at);
  }

  const SessionLimits limits_;
  Sessions sessions_;
  std::vector<uint64_t> ended_;
  uint64_t next_number_ = 1;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_SESSION_TABLE_H_
