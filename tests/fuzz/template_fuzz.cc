// Chat templates, messages and variables that nobody has checked: the three, divided by lines
// "---".
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/chat_template.h"

namespace tinyserve {
namespace {

constexpr std::string_view kDivider = "\n---\n";

// The part before the next divider, or all; takes both from `rest`.
std::string NextPart(std::string_view* rest) {
  const size_t at = std::min(rest->find(kDivider), rest->size());
  std::string part(rest->substr(0, at));
  rest->remove_prefix(std::min(at + kDivider.size(), rest->size()));
  return part;
}

void CheckResult(const Result<std::string>& text, const TemplateLimits& limits) {
  if (text.ok()) {
    TS_CHECK(text->size() <= limits.output_bytes_max);
    return;
  }
  // Among others no kInternal: a panic is a finding, though it is caught.
  const Code code = text.status().code();
  TS_CHECK(code == Code::kInvalidArgument || code == Code::kCorrupt ||
           code == Code::kResourceExhausted);
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const std::string source = NextPart(&rest);
  const std::string messages = NextPart(&rest);
  const std::string extra(rest);
  TemplateLimits limits;
  limits.steps_max = 20'000;
  limits.output_bytes_max = 1 << 16;
  const auto made = ChatTemplate::Create(source, "<s>", "</s>", limits);
  if (!made.ok()) {
    TS_CHECK(made.status().code() == Code::kCorrupt);
    return 0;
  }
  CheckResult((*made)->Render({{"user", "Hi \xFF"}, {"assistant", source}}, true, ""), limits);
  CheckResult((*made)->RenderJson(messages, false, extra), limits);
  return 0;
}
