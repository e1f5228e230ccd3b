// The members of a JSON object, read one by one, so that none is ignored in silence.
#ifndef TINYSERVE_SERVER_JSON_FIELDS_H_
#define TINYSERVE_SERVER_JSON_FIELDS_H_

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace tinyserve {

// Each function reads the member `name` into `*out`, and leaves `*out` alone where the member is
// absent or null. The first thing that is wrong is kept in the error that all Fields of a request
// share; later ones are not. Names in errors are paths, as in "stream_options.include_usage".
class Fields {
 public:
  // `object` and `error` must outlive this.
  Fields(const boost::json::object& object, std::string prefix, std::optional<ApiError>* error)
      : object_(object), prefix_(std::move(prefix)), error_(error) {}

  bool failed() const { return error_->has_value(); }
  // Of the member, for messages.
  std::string Path(std::string_view name) const { return prefix_ + std::string(name); }
  void Fail(std::string_view name, std::string message);
  void Fail(ApiError error);

  // The member, or null where it is absent, null, or something went wrong before. It counts as
  // read.
  const boost::json::value* Find(std::string_view name);

  void Bool(std::string_view name, bool* out);
  // In [low, high].
  void Number(std::string_view name, double low, double high, float* out);
  void Integer(std::string_view name, int64_t low, int64_t high, int64_t* out);
  void Count(std::string_view name, uint32_t low, uint32_t high, uint32_t* out);
  void String(std::string_view name, size_t bytes_max, std::string* out);
  const boost::json::object* Object(std::string_view name);

  // Members that change nothing here and are documented so.
  void Accept(std::initializer_list<std::string_view> names);
  // Members that clients know and this server cannot do.
  void RefuseUnsupported(std::initializer_list<std::string_view> names);
  // The same; an empty list or object asks for nothing, so it is let through.
  void RefuseUnlessEmpty(std::initializer_list<std::string_view> names);
  // The same of one whose value `harmless` asks for what is done anyway.
  void RefuseUnless(std::string_view name, const boost::json::value& harmless);
  // Any member that was not read.
  void RefuseOthers();

 private:
  const boost::json::object& object_;
  std::string prefix_;
  std::optional<ApiError>* error_;
  std::vector<std::string_view> seen_;
};

// A whole number in [low, high], also where it is written as 3.0. Nothing: it is none.
std::optional<int64_t> WholeNumber(const boost::json::value& value, int64_t low, int64_t high);
// A number in [low, high]. Nothing: it is none.
std::optional<double> RealNumber(const boost::json::value& value, double low, double high);

// Parses a request's body: one JSON object, nested at most `depth_max` deep, no object of which has
// two members of the same name. Errors say where.
std::optional<boost::json::object> ParseBody(std::string_view body, uint32_t depth_max,
                                             std::optional<ApiError>* error);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_JSON_FIELDS_H_
