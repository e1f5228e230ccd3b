#include "engine/answer_text.h"

#include <algorithm>

namespace tinyserve {

std::string AnswerText::Push(std::string_view token_bytes) {
  if (stopped_) return "";
  held_ += characters_.Push(token_bytes);
  return Release();
}

std::string AnswerText::Finish() {
  if (stopped_) return "";
  held_ += characters_.Finish();
  std::string text = Release();
  text += held_;
  held_.clear();
  return text;
}

std::string AnswerText::Release() {
  size_t cut = std::string::npos;
  for (const std::string& stop : stop_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
    std::string text = held_.substr(0, cut);
    held_.clear();
    return text;
  }
  // The longest tail that begins a stop string stays.
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n))
        keep = n;
    }
  }
  std::string text = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return text;
}

}  // namespace tinyserve
