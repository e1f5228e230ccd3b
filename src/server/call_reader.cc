#include "server/call_reader.h"

#include <algorithm>
#include <boost/json/basic_parser_impl.hpp>
#include <utility>

#include "server/message_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kDepthMax = 64;

// Where the JSON stands, from the parser's events.
class CallHandler {
 public:
  static constexpr size_t max_object_size = SIZE_MAX, max_array_size = SIZE_MAX,
                          max_key_size = SIZE_MAX, max_string_size = SIZE_MAX;

  bool has_name = false;    // the call's name is known
  bool inside = false;      // bytes are those of an arguments object
  bool has_quoted = false;  // the arguments came as a string, which is in `quoted`
  bool call_ended = false;  // since the last Reset
  std::string name, quoted;

  void Reset() {
    has_name = has_quoted = call_ended = has_arguments_ = false;
    name.clear();
    quoted.clear();
  }

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code& failed) {
    ++depth_;
    if (depth_ == call_depth_ + 1 && field_ == Field::kName) return Refuse(failed);
    if (depth_ == call_depth_ + 1 && field_ == Field::kArguments) {
      if (!TakeArguments(failed)) return false;
      inside = true;
    }
    return true;
  }
  bool on_object_end(size_t, json::error_code& failed) {
    if (depth_ == call_depth_ + 1) {
      inside = false;
      field_ = Field::kOther;
    }
    if (depth_-- != call_depth_) return true;
    call_ended = true;
    return has_name || Refuse(failed);
  }
  bool on_array_begin(json::error_code& failed) {
    ++depth_;
    if (depth_ == 1) {
      call_depth_ = 2;
      return true;
    }
    const bool named = depth_ == call_depth_ + 1 && field_ != Field::kOther;
    return (depth_ != call_depth_ && !named) || Refuse(failed);
  }
  bool on_array_end(size_t, json::error_code&) {
    --depth_;
    return true;
  }
  bool on_key_part(json::string_view part, size_t, json::error_code&) {
    if (depth_ == call_depth_) key_ += std::string_view(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, size_t n, json::error_code& failed) {
    on_key_part(part, n, failed);
    if (depth_ != call_depth_) return true;
    field_ = key_ == "name"                                ? Field::kName
             : key_ == "arguments" || key_ == "parameters" ? Field::kArguments
                                                           : Field::kOther;
    key_.clear();
    return true;
  }
  bool on_string_part(json::string_view part, size_t, json::error_code& failed) {
    if (depth_ < call_depth_) return Refuse(failed);
    if (depth_ > call_depth_ || field_ == Field::kOther) return true;
    if (field_ == Field::kName ? has_name : has_arguments_) return Refuse(failed);
    (field_ == Field::kName ? name : quoted) += std::string_view(part.data(), part.size());
    return true;
  }
  bool on_string(json::string_view part, size_t n, json::error_code& failed) {
    if (!on_string_part(part, n, failed)) return false;
    if (depth_ > call_depth_ || field_ == Field::kOther) return true;
    if (field_ == Field::kName) {
      has_name = true;
    } else {
      has_quoted = has_arguments_ = true;
    }
    field_ = Field::kOther;
    return true;
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t, json::string_view, json::error_code& failed) { return Scalar(failed); }
  bool on_uint64(uint64_t, json::string_view, json::error_code& failed) { return Scalar(failed); }
  bool on_double(double, json::string_view, json::error_code& failed) { return Scalar(failed); }
  bool on_bool(bool, json::error_code& failed) { return Scalar(failed); }
  bool on_null(json::error_code& failed) {
    if (depth_ == call_depth_ && field_ == Field::kArguments) {
      field_ = Field::kOther;  // a call without arguments
      return TakeArguments(failed);
    }
    return Scalar(failed);
  }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  enum class Field : uint8_t { kOther, kName, kArguments };

  static bool Refuse(json::error_code& failed) {
    failed = json::error::syntax;
    return false;
  }
  bool Scalar(json::error_code& failed) {
    return depth_ > call_depth_ || (depth_ == call_depth_ && field_ == Field::kOther) ||
           Refuse(failed);
  }
  // Once a call.
  bool TakeArguments(json::error_code& failed) {
    if (has_arguments_) return Refuse(failed);
    return has_arguments_ = true;
  }

  size_t depth_ = 0;       // containers that are open
  size_t call_depth_ = 1;  // within a call: 2 in a list
  Field field_ = Field::kOther;
  bool has_arguments_ = false;
  std::string key_;
};

}  // namespace

class CallReader::Parser : public json::basic_parser<CallHandler> {
 public:
  Parser() : json::basic_parser<CallHandler>(Options()) {}

 private:
  static json::parse_options Options() {
    json::parse_options options;
    options.max_depth = kDepthMax;
    return options;
  }
};

CallReader::CallReader(const std::vector<std::string>* names, uint32_t first_call)
    : parser_(std::make_unique<Parser>()), names_(names), call_(first_call) {}
CallReader::~CallReader() = default;
CallReader::CallReader(CallReader&&) noexcept = default;
CallReader& CallReader::operator=(CallReader&&) noexcept = default;

bool CallReader::Emit(std::vector<AnswerPart>* out) {
  CallHandler& handler = parser_->handler();
  if (!handler.has_name) return true;
  if (!begun_ && std::find(names_->begin(), names_->end(), handler.name) == names_->end())
    return false;
  if (handler.has_quoted) {
    if (!ParseObject(handler.quoted, kDepthMax)) return false;
    arguments_ = std::exchange(handler.quoted, "");
    handler.has_quoted = false;
  }
  if (arguments_.empty() && !begun_ && handler.call_ended) arguments_ = "{}";
  if (!arguments_.empty()) {
    if (!begun_) out->push_back({AnswerPart::Kind::kCall, call_, handler.name});
    out->push_back({AnswerPart::Kind::kArguments, call_, std::exchange(arguments_, "")});
    begun_ = true;
  }
  if (begun_) raw_.clear();
  if (!handler.call_ended) return true;
  handler.Reset();
  begun_ = false;
  ++call_;
  return true;
}

CallReader::State CallReader::Push(char byte, std::vector<AnswerPart>* out) {
  CallHandler& handler = parser_->handler();
  const bool was_inside = handler.inside;
  raw_ += byte;
  json::error_code failed;
  parser_->write_some(true, &byte, 1, failed);
  if (failed) return State::kFailed;
  if (was_inside || handler.inside) arguments_ += byte;
  if (!Emit(out)) return State::kFailed;
  return parser_->done() ? State::kDone : State::kMore;
}

}  // namespace tinyserve
