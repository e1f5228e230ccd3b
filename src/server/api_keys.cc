#include "server/api_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

namespace tinyserve {
namespace {

constexpr size_t kKeyBytesMax = 512, kKeysMax = 1024;

std::string_view Trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

}  // namespace

bool EqualInConstantTime(std::string_view a, std::string_view b) {
  size_t differences = a.size() ^ b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    const unsigned char other = b.empty() ? 0 : static_cast<unsigned char>(b[i % b.size()]);
    differences |= static_cast<unsigned char>(a[i]) ^ size_t { other };
  }
  return differences == 0;
}

Result<std::vector<std::string>> ParseApiKeys(std::string_view text) {
  std::vector<std::string> keys;
  for (size_t line = 1; !text.empty(); ++line) {
    const size_t end = text.find('\n');
    const std::string_view key = Trimmed(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (key.empty() || key.front() == '#') continue;
    const bool plain =
        std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (!plain || key.size() > kKeyBytesMax) {
      return Status(Code::kInvalidArgument,
                    fmt::format("the API key in line {} must be 1 to {} visible ASCII characters",
                                line, kKeyBytesMax));
    }
    if (keys.size() == kKeysMax) {
      return Status(Code::kInvalidArgument, fmt::format("more than {} API keys", kKeysMax));
    }
    keys.emplace_back(key);
  }
  return keys;
}

std::optional<std::string_view> BearerKey(std::string_view authorization) {
  constexpr std::string_view kScheme = "bearer ";
  if (authorization.size() <= kScheme.size()) return std::nullopt;
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != kScheme[i]) return std::nullopt;
  }
  return Trimmed(authorization.substr(kScheme.size()));
}

void ApiKeys::Set(std::vector<std::string> keys) {
  std::lock_guard lock(mutex_);
  keys_ = std::move(keys);
}

bool ApiKeys::empty() const { return size() == 0; }

size_t ApiKeys::size() const {
  std::lock_guard lock(mutex_);
  return keys_.size();
}

std::optional<uint64_t> ApiKeys::Find(std::string_view key) const {
  std::lock_guard lock(mutex_);
  bool found = false;
  for (const std::string& known : keys_) found |= EqualInConstantTime(key, known);
  if (!found) return std::nullopt;
  return std::max<uint64_t>(1, std::hash<std::string_view>()(key));
}

}  // namespace tinyserve
