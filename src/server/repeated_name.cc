#include "server/repeated_name.h"

#include <boost/json/basic_parser_impl.hpp>
#include <unordered_set>
#include <utility>
#include <vector>

namespace tinyserve {
namespace {

namespace json = boost::json;

// Keeps the names of the objects that are open, from the parser's events.
class NameHandler {
 public:
  static constexpr size_t max_object_size = SIZE_MAX, max_array_size = SIZE_MAX,
                          max_key_size = SIZE_MAX, max_string_size = SIZE_MAX;

  std::optional<std::string> repeated;

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) {
    open_.emplace_back();
    return true;
  }
  bool on_object_end(size_t, json::error_code&) {
    open_.pop_back();
    return true;
  }
  bool on_array_begin(json::error_code&) { return true; }
  bool on_array_end(size_t, json::error_code&) { return true; }
  bool on_key_part(json::string_view part, size_t, json::error_code&) {
    key_ += std::string_view(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, size_t n, json::error_code& failed) {
    on_key_part(part, n, failed);
    Level& level = open_.back();
    level.name = std::exchange(key_, "");
    if (level.names.insert(level.name).second) return true;
    repeated.emplace();
    for (const Level& outer : open_) *repeated += (repeated->empty() ? "" : ".") + outer.name;
    failed = json::error::syntax;  // ends the parser, whose error nobody reads
    return false;
  }
  bool on_string_part(json::string_view, size_t, json::error_code&) { return true; }
  bool on_string(json::string_view, size_t, json::error_code&) { return true; }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t, json::string_view, json::error_code&) { return true; }
  bool on_uint64(uint64_t, json::string_view, json::error_code&) { return true; }
  bool on_double(double, json::string_view, json::error_code&) { return true; }
  bool on_bool(bool, json::error_code&) { return true; }
  bool on_null(json::error_code&) { return true; }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  struct Level {
    std::unordered_set<std::string> names;
    std::string name;  // of the member that is read
  };
  std::vector<Level> open_;
  std::string key_;
};

}  // namespace

std::optional<std::string> RepeatedName(std::string_view text, uint32_t depth_max) {
  json::parse_options options;
  options.max_depth = depth_max;
  json::basic_parser<NameHandler> parser(options);
  json::error_code ignored;
  parser.write_some(false, text.data(), text.size(), ignored);
  return std::move(parser.handler().repeated);
}

}  // namespace tinyserve
