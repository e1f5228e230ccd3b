// Answers of a model that may write anything, read for reasoning and calls of tools. The first byte
// chooses the form, the second the size of the pieces that the answer comes in.
#include <boost/json/parse.hpp>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "server/answer_parser.h"

namespace tinyserve {
namespace {

struct Read {
  std::string text, reasoning;
  std::vector<std::string> calls;  // name, then arguments
};

void Add(std::vector<AnswerPart> parts, Read* read) {
  for (const AnswerPart& part : parts) {
    switch (part.kind) {
      case AnswerPart::Kind::kText:
        read->text += part.text;
        break;
      case AnswerPart::Kind::kReasoning:
        read->reasoning += part.text;
        break;
      case AnswerPart::Kind::kCall:
        TS_CHECK(part.text == "f" || part.text == "g");
        TS_CHECK(part.call >= read->calls.size());
        read->calls.resize(part.call + 1);
        break;
      case AnswerPart::Kind::kArguments:
        TS_CHECK(part.call + 1 == read->calls.size());  // of the call that began last
        read->calls.back() += part.text;
        break;
    }
  }
}

Read ReadIn(const AnswerForm& form, std::string_view answer, size_t piece) {
  AnswerParser parser(form);
  Read read;
  for (size_t at = 0; at < answer.size(); at += piece)
    Add(parser.Push(answer.substr(at, piece)), &read);
  Add(parser.Finish(), &read);
  TS_CHECK(parser.called() == !read.calls.empty());
  return read;
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  if (size < 2) return 0;
  AnswerForm form;
  if (data[0] % 4 != 3) form.tools = static_cast<ToolFormat>(data[0] % 4);
  form.tool_names = {"f", "g"};
  form.reasoning = (data[0] & 4) != 0;
  form.in_reasoning = form.reasoning && (data[0] & 8) != 0;
  form.in_call = form.tools && (data[0] & 16) != 0;
  const std::string_view answer(reinterpret_cast<const char*>(data) + 2, size - 2);
  const Read read = ReadIn(form, answer, 1 + data[1] % 16);
  TS_CHECK(read.text.size() + read.reasoning.size() <= answer.size());
  // How an answer is cut into pieces changes nothing.
  const Read whole = ReadIn(form, answer, answer.size() + 1);
  TS_CHECK(whole.reasoning == read.reasoning && whole.calls == read.calls);
  if (form.plain()) TS_CHECK(read.text == answer);
  return 0;
}
