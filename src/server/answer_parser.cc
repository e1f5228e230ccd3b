#include "server/answer_parser.h"

#include <algorithm>
#include <utility>

namespace tinyserve {
namespace {

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kCallEnd = "</tool_call>", kPythonTag = "<|python_tag|>";
constexpr std::string_view kSpace = " \t\r\n";
constexpr size_t kSpaceHeldMax = 64;  // before a marker, white space is left out

std::string_view TrimmedFront(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(kSpace), text.size()));
}

std::string_view TrimmedBack(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kSpace) + 1);
}

// Whether `text` may go on to become `marker`.
bool Begins(std::string_view marker, std::string_view text) {
  return text.size() < marker.size() && marker.starts_with(text);
}

// How much of `text` is certainly not the beginning of `marker`, or of white space before it.
size_t CertainBytes(std::string_view text, std::string_view marker) {
  size_t certain = text.size();
  for (size_t n = std::min(marker.size() - 1, text.size()); n > 0; --n) {
    if (!Begins(marker, text.substr(text.size() - n))) continue;
    certain = text.size() - n;
    break;
  }
  const size_t trimmed = TrimmedBack(text.substr(0, certain)).size();
  return certain - trimmed > kSpaceHeldMax ? certain : trimmed;
}

}  // namespace

AnswerParser::AnswerParser(AnswerForm form) : form_(std::move(form)) {
  if (form_.in_call) {
    BeginCall("");
  } else if (form_.in_reasoning) {
    state_ = State::kReasoning;
  } else if (!form_.reasoning) {
    state_ = State::kText;
  }
}

std::vector<AnswerPart> AnswerParser::Push(std::string_view text) {
  held_ += text;
  while (Step(false)) continue;
  held_.erase(0, std::exchange(held_from_, 0));
  return std::exchange(out_, {});
}

std::vector<AnswerPart> AnswerParser::Finish() {
  while (Step(true)) continue;
  return std::exchange(out_, {});
}

bool AnswerParser::Step(bool end) {
  switch (state_) {
    case State::kStart:
      return StepStart(end);
    case State::kReasoning:
      return StepReasoning(end);
    case State::kText:
      return StepText(end);
    case State::kCall:
      return StepCall(end);
    case State::kAfterCall:
      return StepAfterCall(end);
  }
  return false;
}

void AnswerParser::Give(AnswerPart::Kind kind, std::string_view text) {
  if (text.empty()) return;
  if (!out_.empty() && out_.back().kind == kind) {
    out_.back().text += text;
  } else {
    out_.push_back({kind, 0, std::string(text)});
  }
}

void AnswerParser::BeginCall(std::string_view opener) {
  reader_.emplace(&form_.tool_names, calls_);
  opener_ = opener;
  state_ = State::kCall;
}

bool AnswerParser::StepStart(bool end) {
  const std::string_view text = TrimmedFront(Held());
  if (!end && (text.empty() || Begins(kThink, text))) return false;
  state_ = State::kText;
  if (text.starts_with(kThink)) {
    Drop(Held().size() - text.size() + kThink.size());
    state_ = State::kReasoning;
  }
  return true;
}

bool AnswerParser::StepReasoning(bool end) {
  // Without the new lines around it.
  if (!reasoning_begun_) Drop(Held().size() - TrimmedFront(Held()).size());
  const size_t at = Held().find(kThinkEnd);
  if (at == std::string_view::npos) {
    const size_t certain = end ? Held().size() : CertainBytes(Held(), kThinkEnd);
    reasoning_begun_ |= certain > 0;
    Give(AnswerPart::Kind::kReasoning, Held().substr(0, certain));
    Drop(certain);
    return false;
  }
  Give(AnswerPart::Kind::kReasoning, TrimmedBack(Held().substr(0, at)));
  Drop(at + kThinkEnd.size());
  skip_space_ = true;
  state_ = State::kText;
  return true;
}

// A call that no marker announces: the whole answer is calls, or nothing of it is.
bool AnswerParser::BeginsBareCall(bool end, bool* wait) {
  std::string_view text = TrimmedFront(Held());
  *wait = !end && (text.empty() || Begins(kPythonTag, text));
  if (text.starts_with(kPythonTag)) {
    text = TrimmedFront(text.substr(kPythonTag.size()));
    *wait = !end && text.empty();
  }
  if (*wait || !text.starts_with("{")) return false;
  const std::string opener(Held().substr(0, Held().size() - text.size()));
  Drop(opener.size());
  BeginCall(opener);
  return true;
}

bool AnswerParser::StepText(bool end) {
  if (skip_space_) {
    Drop(Held().size() - TrimmedFront(Held()).size());
    skip_space_ = Held().empty();
  }
  if (form_.tools == ToolFormat::kLlama3 && !text_begun_) {
    bool wait = false;
    if (BeginsBareCall(end, &wait)) return true;
    if (wait) return false;
  }
  const std::string_view opener = form_.tools ? CallOpener(*form_.tools) : "";
  const size_t at = opener.empty() ? std::string_view::npos : Held().find(opener);
  const std::string_view before = Held().substr(0, at);
  if (at == std::string_view::npos) {
    const size_t certain = end || opener.empty() ? before.size() : CertainBytes(before, opener);
    Give(AnswerPart::Kind::kText, before.substr(0, certain));
    text_begun_ |= certain > 0;
    Drop(certain);
    return false;
  }
  const std::string_view text = TrimmedBack(before);
  Give(AnswerPart::Kind::kText, text);
  const std::string marker(Held().substr(text.size(), at + opener.size() - text.size()));
  Drop(at + opener.size());
  BeginCall(marker);
  return true;
}

bool AnswerParser::StepCall(bool end) {
  CallReader::State state = CallReader::State::kMore;
  std::vector<AnswerPart> parts;
  size_t read = 0;
  while (read < Held().size() && state == CallReader::State::kMore)
    state = reader_->Push(Held()[read++], &parts);
  Drop(read);
  for (AnswerPart& part : parts) {
    opener_.clear();  // it is a call
    called_ = true;
    calls_ = part.call + 1;  // also of one that breaks off
    if (form_.parallel_calls || part.call == 0) out_.push_back(std::move(part));
  }
  if (state == CallReader::State::kMore && !end) return false;
  text_begun_ = true;
  state_ = State::kAfterCall;
  if (state != CallReader::State::kDone) {
    // No call, or one that breaks off: what was not given out is text.
    Give(AnswerPart::Kind::kText, opener_ + reader_->raw());
    state_ = State::kText;
  }
  return true;
}

bool AnswerParser::StepAfterCall(bool end) {
  std::string_view text = TrimmedFront(Held());
  // Takes a marker; false: it may still come.
  const auto take = [&](std::string_view marker) {
    if (!end && (text.empty() || Begins(marker, text))) return false;
    if (text.starts_with(marker)) text = TrimmedFront(text.substr(marker.size()));
    return true;
  };
  const std::string_view unread = text;
  const bool llama = form_.tools == ToolFormat::kLlama3;
  if (form_.tools == ToolFormat::kHermes && !take(kCallEnd)) return false;
  if (llama && !take(";")) return false;
  if (!end && text.empty()) return false;
  const bool more = llama && unread.starts_with(";") && text.starts_with("{");
  Drop(Held().size() - text.size());
  state_ = State::kText;
  if (more) BeginCall("; ");
  return true;
}

}  // namespace tinyserve
