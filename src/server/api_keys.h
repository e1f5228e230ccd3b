// API keys: who may use the server.
#ifndef TINYSERVE_SERVER_API_KEYS_H_
#define TINYSERVE_SERVER_API_KEYS_H_

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tinyserve/status.h"

namespace tinyserve {

// Compares every byte, whatever it finds: the time tells nothing but the lengths.
bool EqualInConstantTime(std::string_view a, std::string_view b);

// Keys as a file holds them: one a line; empty lines and those that begin with # are left out.
// Errors: kInvalidArgument (a key with spaces or control characters, too long, or too many, by its
// line).
Result<std::vector<std::string>> ParseApiKeys(std::string_view text);

// The key of an Authorization header ("Bearer KEY"); nothing: it has none.
std::optional<std::string_view> BearerKey(std::string_view authorization);

// Any thread.
class ApiKeys {
 public:
  void Set(std::vector<std::string> keys);
  // No key is needed.
  bool empty() const;
  size_t size() const;
  // A number of the key, never 0, which stays its own when other keys come and go; nothing: it is
  // none. Takes as long for each.
  std::optional<uint64_t> Find(std::string_view key) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> keys_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_API_KEYS_H_
