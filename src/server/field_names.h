// Which members the readers of requests know: for tests that hold a description of the API against
// what is parsed.
#ifndef TINYSERVE_SERVER_FIELD_NAMES_H_
#define TINYSERVE_SERVER_FIELD_NAMES_H_

#include <algorithm>
#include <iterator>
#include <set>
#include <string>
#include <string_view>

namespace tinyserve {

// While it lives, the paths of all members that Fields of this thread are asked for, those that are
// refused whatever they say left out. One at a time.
class FieldNames {
 public:
  FieldNames() { now_ = this; }
  ~FieldNames() { now_ = nullptr; }
  FieldNames(const FieldNames&) = delete;
  FieldNames& operator=(const FieldNames&) = delete;

  std::set<std::string> names() const {
    std::set<std::string> names;
    std::set_difference(asked_.begin(), asked_.end(), refused_.begin(), refused_.end(),
                        std::inserter(names, names.end()));
    return names;
  }

  static void Ask(const std::string& prefix, std::string_view name) {
    if (now_ != nullptr) now_->asked_.insert(prefix + std::string(name));
  }
  static void Refuse(const std::string& prefix, std::string_view name) {
    if (now_ != nullptr) now_->refused_.insert(prefix + std::string(name));
  }

 private:
  static inline thread_local FieldNames* now_ = nullptr;
  std::set<std::string> asked_, refused_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_FIELD_NAMES_H_
