// Chat templates render as transformers renders them (tests/golden/text/make_templates.py).
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>

#include "tests/golden/text/golden_text.h"
#include "text/chat_template.h"

namespace tinyserve {
namespace {

std::string ReadTemplate(const std::string& name) {
  std::ifstream stream = golden::Open("templates/" + name + ".jinja");
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(ChatTemplateGolden, RendersAsTheReference) {
  std::map<std::string, int> cases;
  std::ifstream stream = golden::Open("templates.golden");
  for (std::string line; std::getline(stream, line);) {
    std::vector<std::string> words;
    for (size_t start = 0, end; start <= line.size(); start = end + 1) {
      end = std::min(line.find(' ', start), line.size());
      words.push_back(golden::Unescape(line.substr(start, end - start)));
    }
    ASSERT_EQ(words.size(), 8u);
    const std::string& name = words[0];
    const std::string where = name + ", case " + std::to_string(cases[name]++) + ": " + words[4];
    const auto made = ChatTemplate::Create(ReadTemplate(name), words[2], words[3]);
    ASSERT_TRUE(made.ok()) << name << ": " << made.status().message();
    const auto text = (*made)->RenderJson(words[4], words[1] == "1", words[5]);
    if (words[6] == "text") {
      ASSERT_TRUE(text.ok()) << where << "\n" << text.status().message();
      EXPECT_EQ(*text, words[7]) << where;
    } else {
      ASSERT_FALSE(text.ok()) << where;
      EXPECT_EQ(text.status().code(), Code::kInvalidArgument) << where;
      EXPECT_NE(text.status().message().find(words[7]), std::string::npos)
          << where << "\n"
          << text.status().message();
    }
  }
  EXPECT_EQ(cases.size(), 11u);
}

}  // namespace
}  // namespace tinyserve
