#include "tools/json_output.h"

#include <fmt/format.h>

#include <boost/json/serialize.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "text/tokenizer.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

void AppendString(std::string_view text, std::string* out) {
  Utf8Stream valid;
  std::string clean = valid.Push(text);
  clean += valid.Finish();
  *out += json::serialize(json::string_view(clean.data(), clean.size()));
}

void AppendDouble(double value, std::string* out) {
  if (std::isfinite(value)) {
    *out += fmt::format("{}", value);
  } else {
    *out += "null";
  }
}

// Boost writes every double with an exponent (9.1E1), which people have to read too.
void Append(const json::value& value, std::string* out) {
  if (const json::object* object = value.if_object()) {
    *out += '{';
    bool first = true;
    for (const auto& [key, member] : *object) {
      if (!std::exchange(first, false)) *out += ", ";
      AppendString({key.data(), key.size()}, out);
      *out += ": ";
      Append(member, out);
    }
    *out += '}';
  } else if (const json::array* array = value.if_array()) {
    *out += '[';
    bool first = true;
    for (const json::value& element : *array) {
      if (!std::exchange(first, false)) *out += ", ";
      Append(element, out);
    }
    *out += ']';
  } else if (const double* number = value.if_double()) {
    AppendDouble(*number, out);
  } else if (const json::string* text = value.if_string()) {
    AppendString({text->data(), text->size()}, out);
  } else {
    *out += json::serialize(value);
  }
}

}  // namespace

std::string ToJson(const json::value& value) {
  std::string out;
  Append(value, &out);
  return out;
}

JsonOutput::JsonOutput(JsonOutput&& other) noexcept
    : file_(std::exchange(other.file_, nullptr)), path_(std::move(other.path_)) {}

JsonOutput::~JsonOutput() {
  if (file_ != nullptr && file_ != stdout) std::fclose(file_);
}

Result<JsonOutput> JsonOutput::Open(const std::string& path) {
  JsonOutput out;
  out.path_ = path == "-" ? "standard output" : path;
  if (path == "-") {
    out.file_ = stdout;
  } else if (!path.empty()) {
    out.file_ = std::fopen(path.c_str(), "we");
    if (out.file_ == nullptr) {
      return Status(Code::kIo,
                    fmt::format("--json: cannot write {}: {}", path, std::strerror(errno)));
    }
  }
  return Result<JsonOutput>(std::move(out));
}

Status JsonOutput::Write(const json::value& value) {
  const std::string line = ToJson(value) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) {
    return Status(Code::kIo, fmt::format("cannot write to {}: {}", path_, std::strerror(errno)));
  }
  return Status();
}

}  // namespace tinyserve
