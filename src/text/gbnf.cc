#include "text/gbnf.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/value.hpp>
#include <charconv>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "text/json_text.h"
#include "text/utf8.h"

namespace tinyserve {
namespace {

constexpr std::string_view kDefines = "::=";

bool IsNameByte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

// Reads a grammar from its beginning to its end and writes each rule as a line of Lark's: rule i is
// r<i>, whatever its name, which Lark might not take.
class Translator {
 public:
  explicit Translator(std::string_view text) : text_(text) {}

  Result<std::string> Run() {
    for (SkipSpace(); at_ < text_.size(); SkipSpace()) TS_RETURN_IF_ERROR(ReadPart());
    for (const auto& [name, rule] : rules_) {
      if (!rule.defined) return Wrong(fmt::format("there is no rule '{}'", name));
    }
    const auto root = rules_.find("root");
    if (root == rules_.end()) return Wrong("there is no rule 'root', at which answers begin");
    return fmt::format("start: r{}", root->second.number) + out_;
  }

 private:
  struct Rule {
    size_t number;
    bool defined = false;
  };

  Status Wrong(std::string message) const {
    return Status(Code::kInvalidArgument, std::move(message));
  }
  Status WrongHere(std::string_view what) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    return Wrong(fmt::format("line {}: {}", line, what));
  }
  std::string_view Rest() const { return text_.substr(at_); }

  // And comments.
  void SkipSpace() {
    while (at_ < text_.size()) {
      if (text_[at_] == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) {
        ++at_;
      } else {
        return;
      }
    }
  }

  Rule& RuleOf(std::string_view name) {
    return rules_.try_emplace(std::string(name), Rule{.number = rules_.size()}).first->second;
  }

  Status ReadPart() {
    const char c = text_[at_];
    if (IsNameByte(c)) return ReadName();
    if (out_.empty()) return WrongHere("a rule is expected: its name and '::='");
    if (c == '"') return ReadLiteral();
    if (c == '[') return ReadClass();
    if (c == '{') return ReadCounts();
    if (c == '.') {
      out_ += R"( /[\x{0}-\x{10FFFF}]/)";
    } else if (std::string_view("*+?").find(c) != std::string_view::npos) {
      out_ += c;
    } else if (std::string_view("|()").find(c) != std::string_view::npos) {
      out_ += fmt::format(" {}", c);
    } else {
      return WrongHere("a literal, a class, a rule's name, a group or '|' is expected");
    }
    ++at_;
    return Status();
  }

  Status ReadName() {
    const size_t begin = at_;
    while (at_ < text_.size() && IsNameByte(text_[at_])) ++at_;
    Rule& rule = RuleOf(text_.substr(begin, at_ - begin));
    SkipSpace();
    if (!Rest().starts_with(kDefines)) {
      if (out_.empty()) return WrongHere("'::=' is expected after the name of a rule");
      out_ += fmt::format(" r{}", rule.number);
      return Status();
    }
    at_ += kDefines.size();
    if (std::exchange(rule.defined, true)) return WrongHere("this rule is defined already");
    out_ += fmt::format("\nr{}:", rule.number);
    return Status();
  }

  // The character at at_, which a backslash may begin, and goes past it. Nothing: there is none.
  std::optional<std::string> TakeCharacter() {
    if (at_ >= text_.size() || text_[at_] == '\n') return std::nullopt;
    if (text_[at_] != '\\') {
      const Utf8Step step = FirstUtf8Step(Rest());
      if (step.kind != Utf8Kind::kCharacter) return std::nullopt;
      at_ += step.bytes;
      return std::string(text_.substr(at_ - step.bytes, step.bytes));
    }
    if (++at_ >= text_.size()) return std::nullopt;
    const char c = text_[at_++];
    static constexpr std::pair<char, char> kShort[] = {{'n', '\n'}, {'r', '\r'}, {'t', '\t'}};
    for (const auto& [letter, meant] : kShort) {
      if (c == letter) return std::string(1, meant);
    }
    const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      if (std::string_view(R"(\"[]-^)").find(c) == std::string_view::npos) return std::nullopt;
      return std::string(1, c);
    }
    uint32_t code = 0;
    const char* begin = Rest().data();
    const char* end = begin + std::min(digits, Rest().size());
    const auto [last, failed] = std::from_chars(begin, end, code, 16);
    if (failed != std::errc() || last != begin + digits || code > 0x10ffff) return std::nullopt;
    if (code >= 0xd800 && code < 0xe000) return std::nullopt;
    at_ += digits;
    std::string character;
    AppendUtf8(code, &character);
    return character;
  }

  Status ReadLiteral() {
    std::string literal;
    for (++at_; at_ < text_.size() && text_[at_] != '"';) {
      std::optional<std::string> character = TakeCharacter();
      if (!character) return WrongHere("the literal has a character that is not understood");
      literal += *character;
    }
    if (at_ >= text_.size()) return WrongHere("the literal has no end");
    ++at_;
    out_ += " " + ToJson(boost::json::value(literal));
    return Status();
  }

  // By numbers: no character has another meaning then.
  static std::string InClass(std::string_view character) {
    return fmt::format(R"(\x{{{:x}}})", static_cast<uint32_t>(CodePoint(character)));
  }

  Status ReadClass() {
    std::string members;
    ++at_;
    const bool others = Rest().starts_with('^');
    if (others) ++at_;
    while (at_ < text_.size() && text_[at_] != ']') {
      const std::optional<std::string> first = TakeCharacter();
      if (!first) return WrongHere("the class has a character that is not understood");
      members += InClass(*first);
      if (!Rest().starts_with('-') || Rest().starts_with("-]")) continue;
      ++at_;
      const std::optional<std::string> last = TakeCharacter();
      if (!last) return WrongHere("the class has a character that is not understood");
      if (CodePoint(*last) < CodePoint(*first)) return WrongHere("a range ends before it begins");
      members += "-" + InClass(*last);
    }
    if (at_ >= text_.size()) return WrongHere("the class has no end");
    ++at_;
    if (members.empty()) return WrongHere("the class is empty");
    out_ += fmt::format(" /[{}{}]/", others ? "^" : "", members);
    return Status();
  }

  // {m}, {m,}, {m,n}.
  Status ReadCounts() {
    const size_t end = Rest().find('}');
    const std::string_view counts = Rest().substr(0, end);
    if (end == std::string_view::npos ||
        counts.find_first_not_of("0123456789, ", 1) != std::string_view::npos)
      return WrongHere("{m}, {m,} or {m,n} is expected");
    out_ += std::string(counts) + "}";
    at_ += end + 1;
    return Status();
  }

  const std::string_view text_;
  size_t at_ = 0;
  std::string out_;
  std::map<std::string, Rule, std::less<>> rules_;
};

}  // namespace

bool IsGbnf(std::string_view text) {
  // A literal of Lark's may hold it, but not behind a name at a line's beginning.
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t name = line.find_first_not_of(" \t");
    if (name == std::string_view::npos) continue;
    size_t end = name;
    while (end < line.size() && IsNameByte(line[end])) ++end;
    const size_t next = line.find_first_not_of(" \t", end);
    if (end > name && next != std::string_view::npos && line.substr(next).starts_with(kDefines))
      return true;
  }
  return false;
}

Result<std::string> LarkOfGbnf(std::string_view text) { return Translator(text).Run(); }

}  // namespace tinyserve
