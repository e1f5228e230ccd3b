#include "tools/json_output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "text/json_text.h"

namespace tinyserve {
namespace json = boost::json;

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
