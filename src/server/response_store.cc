#include "server/response_store.h"

#include <utility>

#include "base/check.h"

namespace tinyserve {

void ResponseStore::Begin(uint64_t owner, const std::string& id, StoredResponse begun,
                          std::function<void()> cancel) {
  std::lock_guard lock(mutex_);
  const bool is_new =
      entries_
          .try_emplace(id, Entry{.owner = owner,
                                 .stored = std::make_shared<StoredResponse>(std::move(begun)),
                                 .cancel = std::move(cancel),
                                 .place = {}})
          .second;
  TS_CHECK(is_new);
}

void ResponseStore::End(const std::string& id, StoredResponse whole, bool keep) {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(id);
  if (at == entries_.end()) return;  // it was deleted
  const uint64_t bytes = whole.bytes();
  if (!keep || limits_.responses_max == 0 || bytes > limits_.bytes_max) {
    entries_.erase(at);
    return;
  }
  while (ended_.size() >= limits_.responses_max || bytes_ + bytes > limits_.bytes_max)
    Drop(entries_.find(ended_.front()));
  at->second.cancel = {};
  at->second.stored = std::make_shared<StoredResponse>(std::move(whole));
  at->second.place = ended_.insert(ended_.end(), id);
  bytes_ += bytes;
}

void ResponseStore::Drop(Entries::iterator entry) {
  if (!entry->second.cancel) {
    bytes_ -= entry->second.stored->bytes();
    ended_.erase(entry->second.place);
  }
  entries_.erase(entry);
}

std::shared_ptr<const StoredResponse> ResponseStore::Find(uint64_t owner,
                                                          std::string_view id) const {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(id);
  return at == entries_.end() || at->second.owner != owner ? nullptr : at->second.stored;
}

bool ResponseStore::Cancel(uint64_t owner, std::string_view id) {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(id);
  if (at == entries_.end() || at->second.owner != owner || !at->second.cancel) return false;
  at->second.cancel();
  return true;
}

bool ResponseStore::Erase(uint64_t owner, std::string_view id) {
  std::lock_guard lock(mutex_);
  const auto at = entries_.find(id);
  if (at == entries_.end() || at->second.owner != owner) return false;
  Drop(at);
  return true;
}

size_t ResponseStore::size() const {
  std::lock_guard lock(mutex_);
  return ended_.size();
}

uint64_t ResponseStore::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace tinyserve
