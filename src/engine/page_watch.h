// Who watches which pages a request reads, and what they see.
#ifndef TINYSERVE_ENGINE_PAGE_WATCH_H_
#define TINYSERVE_ENGINE_PAGE_WATCH_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tinyserve/engine.h"

namespace tinyserve {

// Nothing is looked at unless someone has asked within the last seconds, so that a server without
// spectators pays nothing. Not thread-safe.
class PageWatch {
 public:
  // What the watch of (client, request) has seen; it is watched from now on. request 0: the newest.
  PageReads Ask(std::string_view client, RequestId request, double now);

  struct Watch {
    std::string client;
    RequestId request;
    double asked;  // seconds
    PageReads seen;
  };
  // Those that someone still asks for. Of more than a few, the latest.
  std::vector<Watch>& Alive(double now);

 private:
  std::vector<Watch> watches_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_ENGINE_PAGE_WATCH_H_
