// What the tables of the built-in selectors have in common; the first three also those of the
// built-in step plugins.
#ifndef TINYSERVE_SELECT_BUILTIN_PARTS_H_
#define TINYSERVE_SELECT_BUILTIN_PARTS_H_

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>

#include "kernels/kernels.h"
#include "select/top_pages.h"
#include "tinyserve/plugin.h"

namespace tinyserve {

inline int Refuse(tinyserve_error* error, const std::string& message) {
  std::snprintf(error->message, sizeof error->message, "%s", message.c_str());
  return 1;
}

inline boost::json::object Options(const char* config_json) {
  return boost::json::parse(config_json).as_object();
}

template <class T>
void Close(void* self) {
  std::unique_ptr<T>(static_cast<T*>(self));
}

// The best candidates: as many as the budget has, but `spare`, or as few as have the wanted share
// of the sum of the scores, which must then be shares of the attention.
inline uint32_t Best(const tinyserve_select_item& item, const float* scores, uint32_t spare,
                     uint32_t* pages) {
  const std::span<const float> all(scores, item.page_count);
  uint32_t n = item.budget_pages - std::min(spare, item.budget_pages);
  if (item.mass > 0) n = std::clamp(PagesOfMass(all, item.mass), std::min(item.least_pages, n), n);
  TopPages(all, n, pages);
  return n;
}

// The option `pool` of a table; false where it is none.
inline bool ReadPool(const boost::json::object& options, ScorePool* pool) {
  const auto& name = options.at("pool").as_string();
  if (name == "max") {
    *pool = ScorePool::kMax;
  } else if (name == "sum") {
    *pool = ScorePool::kSum;
  } else if (name == "softmax") {
    *pool = ScorePool::kSoftmax;
  } else {
    return false;
  }
  return true;
}

}  // namespace tinyserve

#endif  // TINYSERVE_SELECT_BUILTIN_PARTS_H_
