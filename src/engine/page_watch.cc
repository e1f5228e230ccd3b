#include "engine/page_watch.h"

#include <algorithm>

namespace tinyserve {
namespace {

constexpr double kWatchSeconds = 3;
constexpr size_t kWatchesMax = 8;

}  // namespace

PageReads PageWatch::Ask(std::string_view client, RequestId request, double now) {
  for (Watch& watch : Alive(now)) {
    if (watch.client != client || watch.request != request) continue;
    watch.asked = now;
    return watch.seen;
  }
  if (watches_.size() == kWatchesMax) {
    watches_.erase(
        std::min_element(watches_.begin(), watches_.end(),
                         [](const Watch& a, const Watch& b) { return a.asked < b.asked; }));
  }
  watches_.push_back({.client = std::string(client), .request = request, .asked = now, .seen = {}});
  return {};
}

std::vector<PageWatch::Watch>& PageWatch::Alive(double now) {
  std::erase_if(watches_, [now](const Watch& w) { return now - w.asked > kWatchSeconds; });
  return watches_;
}

}  // namespace tinyserve
