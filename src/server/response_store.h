// Responses that clients may ask for again, or go on from.
#ifndef TINYSERVE_SERVER_RESPONSE_STORE_H_
#define TINYSERVE_SERVER_RESPONSE_STORE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace tinyserve {

struct StoredResponse {
  std::string response;  // JSON: the object
  std::string input;     // JSON: the list of its input's items
  std::string messages;  // JSON: the conversation up to its end, without instructions

  uint64_t bytes() const { return response.size() + input.size() + messages.size(); }
};

struct ResponseStoreLimits {
  uint32_t responses_max = 1024;
  uint64_t bytes_max = 64 << 20;
};

// In memory alone. Where it is full, the oldest give way. A response is found by its owner alone:
// the client whose key it was asked with. Any thread.
class ResponseStore {
 public:
  explicit ResponseStore(const ResponseStoreLimits& limits) : limits_(limits) {}

  // A response begins: it can be found, cancelled and deleted. `cancel` must return quickly, and is
  // not called once End has begun.
  void Begin(uint64_t owner, const std::string& id, StoredResponse begun,
             std::function<void()> cancel);
  // It has ended: `whole` takes the place of what was begun, unless it was deleted, or `keep` is
  // false.
  void End(const std::string& id, StoredResponse whole, bool keep);

  // Null: there is none of this owner.
  std::shared_ptr<const StoredResponse> Find(uint64_t owner, std::string_view id) const;
  // Asks one that runs to end. False: there is none of this owner that runs.
  bool Cancel(uint64_t owner, std::string_view id);
  // False: there was none of this owner. One that runs goes on, and is not kept.
  bool Erase(uint64_t owner, std::string_view id);

  size_t size() const;
  uint64_t bytes() const;

 private:
  struct Entry {
    uint64_t owner;
    std::shared_ptr<const StoredResponse> stored;
    std::function<void()> cancel;            // empty: it has ended
    std::list<std::string>::iterator place;  // in ended_, once it has
  };
  using Entries = std::map<std::string, Entry, std::less<>>;

  void Drop(Entries::iterator entry);

  const ResponseStoreLimits limits_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::list<std::string> ended_;  // oldest first
  uint64_t bytes_ = 0;            // of those
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_RESPONSE_STORE_H_
