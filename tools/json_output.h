// JSON for programs that read the output: `--json FILE`, or `--json -` for standard output.
#ifndef TINYSERVE_TOOLS_JSON_OUTPUT_H_
#define TINYSERVE_TOOLS_JSON_OUTPUT_H_

#include <boost/json/value.hpp>
#include <cstdio>
#include <string>

#include "tinyserve/status.h"

namespace tinyserve {

class JsonOutput {
 public:
  JsonOutput() = default;
  JsonOutput(JsonOutput&& other) noexcept;
  JsonOutput& operator=(JsonOutput&&) = delete;
  ~JsonOutput();

  // `path`: "" for none, "-" for standard output. The file is created at once, so that an
  // impossible name is told before the work and not after it. Errors: kIo.
  static Result<JsonOutput> Open(const std::string& path);

  bool wanted() const { return file_ != nullptr; }
  bool on_stdout() const { return file_ == stdout; }
  // Writes one line and flushes it. Errors: kIo (a full disk, a closed pipe).
  Status Write(const boost::json::value& value);

 private:
  std::FILE* file_ = nullptr;
  std::string path_;
};

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_JSON_OUTPUT_H_
